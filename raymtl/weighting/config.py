"""ConFIG, conflict-free inverse gradients (Liu et al., 2024, arXiv:2408.11104).

d = (sum_t <g_t, v>) v, with v the unit vector along U^+ 1 and U the rows g_t / |g_t|.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

from raymtl.types import Task
from raymtl.weighting.base import GradientWeightingSpec
from raymtl.weighting.gramian import Array, GramianWeighting, equal_projections, leaving_out_zeros


def conflict_free(products: Array, rounding: float) -> Array:
    """Weights [K] of the paper's d; U^+ = U'(U U')^+, so the Gramian suffices."""
    weights = equal_projections(products, rounding)
    gains = products @ weights
    square = weights @ gains
    if square <= 0:
        return weights
    scaled: Array = gains.sum() / square * weights
    return scaled


class ConFIG(GramianWeighting):
    """The direction with the same positive cosine to every task's gradient. Its length is the sum
    of the gradients' projections on it.

    Equal gradients give their plain sum. Weights may be negative. Linearly dependent gradients get
    cosines as nearly equal as possible, and opposite gradients weigh 0. A task whose gradient is
    zero takes no part. The pseudo-inverse is computed from the Gramian, so it leaves out singular
    values of U below sqrt(K eps) times the largest.
    """

    def solve(self, products: Array, rounding: float) -> Array:
        return leaving_out_zeros(conflict_free)(products, rounding)


class ConFIGSpec(GradientWeightingSpec):
    """A joint gradient that has the same cosine with every task's gradient.

    Example: `weighting: {name: config}`
    """

    name: Literal["config"] = "config"
    helps: ClassVar[str] = (
        "tasks of very different gradient sizes, such as the terms of a physical loss"
    )

    def build(self, tasks: Sequence[Task]) -> ConFIG:
        return ConFIG(len(tasks))
