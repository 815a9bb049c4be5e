"""CAGrad, conflict-averse gradient descent (Liu et al., 2021, arXiv:2110.14048).

max over d of min_t <g_t, d> where |d - g_0| <= c |g_0|, with g_0 the mean gradient. Its dual, with
g_w = sum_t w_t g_t: min over the simplex of <g_0, g_w> + c |g_0| |g_w|, and d = g_0 + c |g_0| g_w /
|g_w|.
"""

from collections.abc import Sequence
from functools import partial
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from raymtl.types import Task
from raymtl.weighting.base import GradientWeightingSpec
from raymtl.weighting.gramian import Array, GramianWeighting, factor, in_hull, leaving_out_zeros

SHORTEST = 1e-8


def averse(products: Array, rounding: float, c: float) -> Array:
    """K / (1 + c) times the weights [K] of the paper's d.

    |g_w| is the minimum of (|g_w|^2 / r + r) / 2 over r > 0, at r = |g_w|. For a given r the dual
    is the shortest point in the hull of g_t + r g_0 / (c |g_0|). One equation in one unknown
    remains.
    """
    columns = factor(products)
    mean = columns.mean(1)
    radius = c * np.linalg.norm(mean)
    longest = np.linalg.norm(columns, axis=0).max()
    if radius <= rounding * longest:  # d = g_0, or it is 0
        return np.ones(len(products))

    def dual(log_r: float) -> Array:
        return in_hull(columns + np.exp(log_r) / radius * mean[:, None], "cagrad")

    def excess(log_r: float) -> float:
        return float(np.linalg.norm(columns @ dual(log_r)) / np.exp(log_r)) - 1

    # Here and not above: every process imports this file, and SciPy takes it a third of a second.
    from scipy.optimize import brentq

    log_r = np.log(SHORTEST * longest)
    if excess(log_r) > 0:
        log_r = brentq(excess, log_r, np.log(2 * longest), xtol=1e-13)
    weights: Array = (1 + len(products) * radius / np.exp(log_r) * dual(log_r)) / (1 + c)
    return weights


class CAGrad(GramianWeighting):
    """Follows the direction near the mean gradient that most improves the task that improves least.

    Deviations from the paper:
    - The direction is K / (1 + c) times the paper's d, so that equal gradients give their plain
      sum. The factor 1 / (1 + c) is a rescaling of the authors' code. (TorchJD returns d.)
    - Where gradients are nearly opposite, the weights grow as 1 / |g_w|. |g_w| is held above 1e-8
      of the longest gradient.
    - A task whose gradient is zero takes no part, also not in the mean.
    """

    def __init__(self, num_tasks: int, c: float) -> None:
        super().__init__(num_tasks)
        self.c = c

    def solve(self, products: Array, rounding: float) -> Array:
        return leaving_out_zeros(partial(averse, c=self.c))(products, rounding)


class CAGradSpec(GradientWeightingSpec):
    """The direction near the mean gradient that most improves the worst task.

    `c` bounds its distance from the mean gradient, in lengths of that gradient. c = 0 is the mean
    gradient itself; towards 1 the conflicts count more.

    Example: `weighting: {name: cagrad, c: 0.5}`
    """

    name: Literal["cagrad"] = "cagrad"
    helps: ClassVar[str] = "the mean should still fall, while the worst task is cared for"
    c: Annotated[float, Field(ge=0, lt=1)] = 0.4

    def build(self, tasks: Sequence[Task]) -> CAGrad:
        return CAGrad(len(tasks), self.c)
