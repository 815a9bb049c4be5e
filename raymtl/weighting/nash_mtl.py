"""Nash-MTL, a bargaining game (Navon et al., 2022, arXiv:2202.01017): w_t (G w)_t = 1 for all tasks
t.
"""

from collections.abc import Sequence
from functools import partial
from typing import ClassVar, Literal

from raymtl.types import Task
from raymtl.weighting.base import GradientWeightingSpec
from raymtl.weighting.fairgrad import fair
from raymtl.weighting.gramian import Array, GramianWeighting, leaving_out_zeros


class NashMTL(GramianWeighting):
    """The direction with the largest product of the tasks' improvements, which does not depend on
    the units of the losses.

    The weights solve the paper's equation without a change of scale. So the joint gradient always
    has the length sqrt(K), and a task alone weighs 1 / |g|.

    Deviations from the paper:
    - The weights are the minimum of 1/2 w'Gw - sum_t log w_t up to rounding, found in every step.
      The paper and TorchJD take some steps of a convex-concave procedure.
    - The joint gradient is not clipped to `max_norm`, as in the authors' code. Since its length is
      constant, this would only change the learning rate.
    - A task whose gradient is zero takes no part.

    Where a convex combination of the gradients is 0, the equation has no solution. The weights are
    then large, and the joint gradient is nearly 0.
    """

    def solve(self, products: Array, rounding: float) -> Array:
        solve = partial(fair, alpha=1.0, method="nash_mtl")
        return leaving_out_zeros(solve)(products, rounding)


class NashMTLSpec(GradientWeightingSpec):
    """The Nash bargaining solution among the gradients of the tasks.

    Example: `weighting: {name: nash_mtl}`
    """

    name: Literal["nash_mtl"] = "nash_mtl"
    helps: ClassVar[str] = "losses have unlike scales and a fair bargain is wanted"

    def build(self, tasks: Sequence[Task]) -> NashMTL:
        return NashMTL(len(tasks))
