"""PCGrad, projecting conflicting gradients (Yu et al., 2020, arXiv:2001.06782)."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from raymtl.types import Task
from raymtl.weighting.base import Jacobian, LossWeighting, WeightingSpecBase


def project(gramian: Tensor, order: Tensor) -> Tensor:
    """Weights [K] of the sum of all projected gradients.

    Row i of `order` [K, K] says in which order gradient i is projected onto the normal plane of the others it
    conflicts with; its own index in the row is passed over. Gradient i is kept as its coefficients on the original
    gradients, and `products` as its inner products with them, so that no step touches the gradients themselves.
    """
    size = len(gramian)
    rows = torch.arange(size, device=gramian.device)
    coefficients = torch.eye(size, dtype=gramian.dtype, device=gramian.device)
    products = gramian.clone()
    for column in order.unbind(1):
        # The products with itself are not negative, so gradient i passes itself over without a special case.
        overlap = products[rows, column].clamp(max=0)
        shift = torch.where(overlap < 0, overlap / gramian[column, column], 0)
        coefficients[rows, column] -= shift
        products -= shift[:, None] * gramian[column]
    return coefficients.sum(0)


class PCGrad(LossWeighting):
    """Sums the projected gradients, as the paper does: where nothing conflicts it equals the sum of the losses.

    The random order is a function of the number of updates made so far, so it is the same on all workers and after
    a resume.
    """

    num_updates: Tensor

    def __init__(self, num_tasks: int) -> None:
        super().__init__(num_tasks)
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.int64))

    def weigh(self, losses: Tensor, jacobian: Jacobian | None, tasks: Tensor) -> Tensor:
        assert jacobian is not None
        generator = torch.Generator().manual_seed(int(self.num_updates))
        self.num_updates += 1
        order = torch.rand(len(tasks), len(tasks), generator=generator).argsort(1)
        products = jacobian.gramian()
        return project(products, order.to(products.device))


class PCGradSpec(WeightingSpecBase):
    """No hyperparameters."""

    name: Literal["pcgrad"] = "pcgrad"
    needs_gradients: ClassVar[bool] = True

    def build(self, tasks: Sequence[Task]) -> PCGrad:
        return PCGrad(len(tasks))
