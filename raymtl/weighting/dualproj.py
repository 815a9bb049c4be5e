"""DualProj, the sum of the gradients projected (GEM; Lopez-Paz & Ranzato, 2017, arXiv:1706.08840).

min |d - sum_t g_t|^2 where <g_s, d> >= 0 for all s; d = sum_t v_t g_t with v = argmin of v'Gv over
v >= 1.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

from raymtl.types import Task
from raymtl.weighting.base import GradientWeightingSpec
from raymtl.weighting.gramian import Array, GramianWeighting, factor, in_cone


def projected_sum(products: Array, rounding: float) -> Array:
    """Weights [K] of the projection of the sum of the gradients."""
    columns = factor(products)
    return 1 + in_cone(columns, -columns.sum(1), "dualproj")


class DualProj(GramianWeighting):
    """The direction nearest to the sum of the gradients that conflicts with none of them.

    Deviations from the paper:
    - The sum of the gradients is projected, so that without conflict the result is the gradient of
      the sum of the losses. GEM projects the gradient of the current task, TorchJD the mean.
    - The projection is exact. TorchJD adds a regularisation of 1e-4 by default.

    A gradient that is zero conflicts with no other and weighs 1.
    """

    def solve(self, products: Array, rounding: float) -> Array:
        return projected_sum(products, rounding)


class DualProjSpec(GradientWeightingSpec):
    """Projects the sum of the gradients onto the cone that conflicts with none of them.

    Example: `weighting: {name: dualproj}`
    """

    name: Literal["dualproj"] = "dualproj"
    helps: ClassVar[str] = "the mean gradient should be followed unless it harms a task"

    def build(self, tasks: Sequence[Task]) -> DualProj:
        return DualProj(len(tasks))
