"""UPGrad, unconflicting projection of gradients (Quinton & Rey, 2024, arXiv:2406.16232).

sum_t pi(g_t), with pi the projection onto the dual cone of the gradients, {d: <g_s, d> >= 0 for all
s}. pi(sum_t u_t g_t) = sum_t v_t g_t with v = argmin of v'Gv over v >= u.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np

from raymtl.types import Task
from raymtl.weighting.base import GradientWeightingSpec
from raymtl.weighting.gramian import Array, GramianWeighting, factor, in_cone


def projected_each(products: Array, rounding: float) -> Array:
    """Weights [K] of the sum of the projections of all gradients."""
    columns = factor(products)
    weights: Array = 1 + np.sum(
        [in_cone(columns, -column, "upgrad") for column in columns.T], axis=0
    )
    return weights


class UPGrad(GramianWeighting):
    """Sums the gradients after each has been projected onto the directions that conflict with none
    of them.

    Deviations from the paper:
    - The projections are summed, so that without conflict the result is the gradient of the sum of
      the losses. The paper and TorchJD take their mean.
    - The projections are exact. TorchJD adds a regularisation of 1e-4 by default.

    A gradient that is zero conflicts with no other and weighs 1.
    """

    def solve(self, products: Array, rounding: float) -> Array:
        return projected_each(products, rounding)


class UPGradSpec(GradientWeightingSpec):
    """Sums the projections of all gradients onto the cone that conflicts with none of them.

    Example: `weighting: {name: upgrad}`
    """

    name: Literal["upgrad"] = "upgrad"
    helps: ClassVar[str] = "no task may get worse, and none may be ignored"

    def build(self, tasks: Sequence[Task]) -> UPGrad:
        return UPGrad(len(tasks))
