"""GradVac, gradient vaccine (Wang et al., 2021, arXiv:2010.05874).

Where phi = cos(g_i, g_j) is below its target p: g_i <- g_i + |g_i| (p sqrt(1 - phi^2) - phi sqrt(1
- p^2)) / (|g_j| sqrt(1 - p^2)) g_j, which brings the cosine to p. Then p <- (1 - beta) p + beta
phi.
"""

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from raymtl.types import Task
from raymtl.weighting.base import GradientWeighting, GradientWeightingSpec, Jacobian
from raymtl.weighting.gramian import Array, solved
from raymtl.weighting.pcgrad import draw_order

ROOM = 1e-6


def vaccinate(products: Array, targets: Array, order: NDArray[np.int64], beta: float) -> Array:
    """Weights [K] of the sum of all moved gradients; moves `targets` [K, K] in place.

    Gradient i meets the original other gradients in the order of row i of `order` [K, K - 1]. It is
    represented by its coefficients on the original gradients and, in `now`, by its inner products
    with them. All gradients take their steps together.
    """
    rows = np.arange(len(products))
    coefficients, now = np.eye(len(products)), products.copy()
    norms = np.sqrt(products.diagonal().clip(min=0))
    for others in order.T:
        length = np.sqrt((coefficients * now).sum(1).clip(min=0))
        lengths, target = length * norms[others], targets[rows, others]
        has_length = lengths > 0
        cosine = np.divide(now[rows, others], lengths, out=target.copy(), where=has_length).clip(
            -1, 1
        )
        # A target of 1, as of gradients that have always been parallel, cannot be reached by any
        # step.
        room = np.sqrt((1 - target**2).clip(min=ROOM))
        step = length * (target * np.sqrt(1 - cosine**2) - cosine * room)
        shift = np.divide(
            step,
            norms[others] * room,
            out=np.zeros(len(rows)),
            where=has_length & (cosine < target),
        )
        coefficients[rows, others] += shift
        now += shift[:, None] * products[others]
        targets[rows, others] = (1 - beta) * target + beta * cosine
    weights: Array = coefficients.sum(0)
    return weights


class GradVac(GradientWeighting):
    """Sums the gradients after turning each so that its cosines with the others are at least their
    running averages.

    There is one target for each pair of tasks and all shared parameters; the paper may have one for
    each layer. Targets start at 0, and with targets of 0 the method is PCGrad. The average takes
    the cosine of the gradient as it is turned so far, as the loop of the paper does. The random
    order depends only on the number of updates so far. A gradient that is zero weighs 1 and changes
    no target. Targets above sqrt(1 - 1e-6) are not reached exactly.
    """

    num_updates: Tensor
    targets: Tensor

    def __init__(self, num_tasks: int, beta: float) -> None:
        super().__init__(num_tasks)
        self.beta = beta
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.int64))
        self.register_buffer("targets", torch.zeros(num_tasks, num_tasks, dtype=torch.float64))

    def weigh(self, losses: Tensor, jacobian: Jacobian, tasks: Tensor) -> Tensor:
        order = draw_order(len(tasks), int(self.num_updates))
        self.num_updates = self.num_updates + 1
        pairs = (tasks[:, None].to(self.targets.device), tasks.to(self.targets.device))
        targets = self.targets[pairs].cpu().numpy()
        weights = solved(
            lambda products, rounding: vaccinate(products, targets, order, self.beta),
            jacobian.gramian(),
        )
        self.targets = self.targets.index_put(pairs, torch.from_numpy(targets).to(self.targets))
        return weights


class GradVacSpec(GradientWeightingSpec):
    """Turns gradients to the cosines of earlier steps; `beta` is how fast these targets follow.

    Example: `weighting: {name: gradvac, beta: 0.1}`
    """

    name: Literal["gradvac"] = "gradvac"
    helps: ClassVar[str] = "tasks are alike and their gradients should agree more than they do"
    beta: Annotated[float, Field(gt=0, le=1)] = 0.01

    def build(self, tasks: Sequence[Task]) -> GradVac:
        return GradVac(len(tasks), self.beta)
