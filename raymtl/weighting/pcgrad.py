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
from torch.nn import functional as F

from raymtl.types import Task
from raymtl.weighting.base import GradientWeighting, GradientWeightingSpec, Jacobian
from raymtl.weighting.gramian import Array, solved

STEPS_AT_ONCE = 24
"""How many projections are made between two updates of all inner products. Of 16 to 32 this was the
fastest for 300 tasks and more."""


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
    with them, so that no step touches the gradients. All gradients take their steps together, and
    after every STEPS_AT_ONCE of them `now` is brought up to date.
    """
    coefficients, now = np.eye(len(products)), products.copy()
    for start in range(0, order.shape[1], STEPS_AT_ONCE):
        others = order[:, start : start + STEPS_AT_ONCE]
        shifts = _shifts(products, np.take_along_axis(now, others, 1), others)
        np.put_along_axis(coefficients, others, -shifts, 1)
        if start + STEPS_AT_ONCE < order.shape[1]:
            now -= _sums_of_rows(products, shifts, others)
    weights: Array = coefficients.sum(0)
    return weights


def _shifts(products: Array, overlaps: Array, others: NDArray[np.int64]) -> Array:
    """How much of each of the next S gradients is taken from each gradient, [K, S]; at most 0.

    `others` [K, S] are the gradients that it meets, `overlaps` [K, S] its inner products with them
    before the first of these steps.
    """
    squares = products.diagonal()
    inverse = np.divide(1, squares, out=np.zeros(len(squares)), where=squares > 0)
    steps, left = others.T, overlaps.T.copy()
    shifts = left.clip(max=0)
    for step, met in enumerate(steps):
        shifts[step] = left[step].clip(max=0) * inverse[met]
        left[step + 1 :] -= shifts[step] * products[met, steps[step + 1 :]]
    return shifts.T


def _sums_of_rows(products: Array, shifts: Array, others: NDArray[np.int64]) -> Array:
    """sum_s shifts[:, s] products[others[:, s]], [K, K], without the terms that are zero."""
    chosen = shifts < 0
    ends = np.append(0, chosen.sum(1).cumsum())
    sums: Array = F.embedding_bag(
        torch.from_numpy(others[chosen]),
        torch.from_numpy(products),
        torch.from_numpy(ends),
        mode="sum",
        per_sample_weights=torch.from_numpy(shifts[chosen]),
        include_last_offset=True,
    ).numpy()
    return sums


class PCGrad(GradientWeighting):
    """Sums the projected gradients, as the paper does. Without conflicts this is the gradient of
    the sum of the losses.

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
