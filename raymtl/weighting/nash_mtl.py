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

    The weights solve the paper's equation as it stands: the joint gradient has the length sqrt(K)
    whatever the length of the tasks' gradients, and one task alone weighs 1 / |g|. So the clipping
    of that length to `max_norm` in the authors' code is a factor of the learning rate, and left
    out. Solved to rounding (the minimum of 1/2 w'Gw - sum_t log w_t), where the paper and TorchJD
    take some steps of a convex-concave procedure; and anew in every step. A task whose gradient is
    zero takes no part. Where some convex combination of the gradients is 0, no bargain is possible:
    there the weights are large, and their combination of the gradients nearly 0.
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
