"""PCGrad, projecting conflicting gradients (Yu et al., 2020, arXiv:2001.06782).

g_i <- g_i - min(<g_i, g_j>, 0) / |g_j|^2 g_j for all other tasks j in a random order; then the sum
over i.
"""

from collections.abc import Sequence
from functools import partial
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raymtl.types import Task
from raymtl.weighting.base import GradientWeighting, GradientWeightingSpec, Jacobian
from raymtl.weighting.gramian import Array, solved


def draw_order(num_tasks: int, num_updates: int) -> NDArray[np.int64]:
    """The tasks other than i in random order, in row i of [K, K - 1].

    The order is the same on all workers and after a resume.
    """
    generator = torch.Generator().manual_seed(num_updates)
    chances = torch.rand(num_tasks, num_tasks, generator=generator, dtype=torch.float64)
    order: NDArray[np.int64] = chances.fill_diagonal_(2).argsort(1)[:, :-1].numpy()
    return order


def project(products: Array, rounding: float, order: NDArray[np.int64]) -> Array:
    """Weights [K] of the sum of all projected gradients.

    Gradient i meets the original other gradients in the order of row i of `order` [K, K - 1]. It is
    represented by its coefficients on the original gradients and, in `now`, by its inner products
    with them, so that no step touches the gradients. All gradients take their steps together.
    """
    rows = np.arange(len(products))
    coefficients, now = np.eye(len(products)), products.copy()
    squares = products.diagonal()
    for others in order.T:
        overlap = now[rows, others].clip(max=0)
        shift = np.divide(
            overlap, squares[others], out=np.zeros(len(rows)), where=squares[others] > 0
        )
        coefficients[rows, others] -= shift
        now -= shift[:, None] * products[others]
    weights: Array = coefficients.sum(0)
    return weights


class PCGrad(GradientWeighting):
    """Sums the projected gradients, as the paper does: where nothing conflicts it equals the sum of
    the losses.

    The random order is a function of the number of updates made so far. A gradient that is zero
    conflicts with none and weighs 1.
    """

    num_updates: Tensor

    def __init__(self, num_tasks: int) -> None:
        super().__init__(num_tasks)
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.int64))

    def weigh(self, losses: Tensor, jacobian: Jacobian, tasks: Tensor) -> Tensor:
        order = draw_order(len(tasks), int(self.num_updates))
        self.num_updates = self.num_updates + 1
        return solved(partial(project, order=order), jacobian.gramian())


class PCGradSpec(GradientWeightingSpec):
    """Removes from each gradient what conflicts with another, then sums.

    Example: `weighting: {name: pcgrad}`
    """

    name: Literal["pcgrad"] = "pcgrad"
    helps: ClassVar[str] = "gradients of a few tasks point against each other"

    def build(self, tasks: Sequence[Task]) -> PCGrad:
        return PCGrad(len(tasks))
