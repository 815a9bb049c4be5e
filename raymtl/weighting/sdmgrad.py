"""SDMGrad, direction-oriented multi-objective learning (Xiao et al., 2023, arXiv:2305.18409).

d = (g_w + lambda g_0) / (1 + lambda), g_w = sum_t w_t g_t, g_0 the mean gradient;
w = argmin over the simplex of 1/2 |g_w + lambda g_0|^2.
"""

from collections.abc import Sequence
from functools import partial
from typing import ClassVar, Literal

from pydantic import NonNegativeFloat

from raymtl.types import Task
from raymtl.weighting.base import GradientWeightingSpec
from raymtl.weighting.gramian import Array, GramianWeighting, factor, in_hull, leaving_out_zeros


def oriented(products: Array, rounding: float, pull: float) -> Array:
    """K times the weights [K] of the paper's d, the shortest in the hull of g_t + lambda g_0."""
    columns = factor(products)
    weights = in_hull(columns + pull * columns.mean(1, keepdims=True), "sdmgrad")
    return (len(weights) * weights + pull) / (1 + pull)


class SDMGrad(GramianWeighting):
    """MGDA with a pull towards the mean gradient.

    `pull` is the paper's lambda: 0 gives MGDA, and a large value tends to the mean gradient.

    Deviations from the paper:
    - The factor K, with which equal gradients give their plain sum. (TorchJD has no such factor.)
    - The weights are the minimum for the gradients of this step. The paper and TorchJD take
      projected stochastic steps towards it, and multiply gradients of two independent batches to
      get an unbiased estimate.
    - A task whose gradient is exactly zero, such as one that shares no parameter, takes no part,
      also not in the mean.
    """

    def __init__(self, num_tasks: int, pull: float) -> None:
        super().__init__(num_tasks)
        self.pull = pull

    def solve(self, products: Array, rounding: float) -> Array:
        return leaving_out_zeros(partial(oriented, pull=self.pull))(products, rounding)


class SDMGradSpec(GradientWeightingSpec):
    """MGDA, drawn towards the mean gradient by `pull`, the paper's lambda.

    Example: `weighting: {name: sdmgrad, pull: 0.5}`
    """

    name: Literal["sdmgrad"] = "sdmgrad"
    helps: ClassVar[str] = "as mgda, held near the mean"
    pull: NonNegativeFloat = 0.3

    def build(self, tasks: Sequence[Task]) -> SDMGrad:
        return SDMGrad(len(tasks), self.pull)
