"""IMTL-G, impartial learning by gradient balance (Liu et al., ICLR 2021): <g_t, d> / |g_t| equal
for all tasks t.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np

from raymtl.types import Task
from raymtl.weighting.base import GradientWeightingSpec
from raymtl.weighting.gramian import Array, GramianWeighting, equal_projections, leaving_out_zeros


def impartial(products: Array, rounding: float) -> Array:
    """Weights [K] at which the joint gradient has equal projections on all gradients; absolute
    values sum to K.
    """
    weights = equal_projections(products, rounding)
    size = np.abs(weights).sum()
    if size == 0:
        return weights
    scaled: Array = len(weights) * weights / size
    return scaled


class IMTLG(GramianWeighting):
    """The joint gradient has the same positive projection on every task's gradient.

    Weights may be negative. The unit of a task's loss does not change the direction. Linearly
    dependent gradients get projections as nearly equal as possible, and opposite gradients weigh 0.
    A task whose gradient is zero takes no part.

    Deviation from the paper: the absolute values of the weights sum to K. In the paper, and in
    TorchJD, the weights themselves sum to 1. Where some of them are negative, their sum may be near
    0, so that the step explodes, or below 0, so that all losses rise.
    """

    def solve(self, products: Array, rounding: float) -> Array:
        return leaving_out_zeros(impartial)(products, rounding)


class IMTLGSpec(GradientWeightingSpec):
    """A joint gradient that has the same projection on every task's gradient.

    Example: `weighting: {name: imtl_g}`
    """

    name: Literal["imtl_g"] = "imtl_g"
    helps: ClassVar[str] = "no task's gradient may dominate by its size"

    def build(self, tasks: Sequence[Task]) -> IMTLG:
        return IMTLG(len(tasks))
