"""Aligned-MTL, independent component alignment (Senushkin et al., 2023, arXiv:2305.19000).

B = sigma V S^-1 V', with G = V S^2 V' the Gramian; the rows of B J are orthogonal and of length
sigma. Weights = B 1.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np

from raymtl.types import Task
from raymtl.weighting.base import GradientWeightingSpec
from raymtl.weighting.gramian import Array, GramianWeighting, spectrum

Scale = Literal["min", "median", "rmse"]


def aligned(products: Array, rounding: float, scale: Scale) -> Array:
    """The matrix B [K, K]; the identity where all gradients are zero."""
    values, vectors = spectrum(products, rounding)
    if not len(values):
        return np.eye(len(products))
    square = {"min": values[0], "median": values[(len(values) - 1) // 2], "rmse": values.mean()}[
        scale
    ]
    matrix: Array = vectors * np.sqrt(square / values) @ vectors.T
    return matrix


class AlignedMTL(GramianWeighting):
    """Sums the gradients after their principal components have been scaled to the same length.

    The common length sigma is the smallest singular value above rounding ("min", as in the paper),
    the lower median of the singular values ("median") or their root mean square ("rmse").

    Deviations from the paper:
    - The aligned gradients are summed, so that equal gradients give their plain sum. The paper
      takes a mean by preferences. (TorchJD returns 1/K of the sum.)
    - A task whose gradient is zero weighs 0.
    """

    def __init__(self, num_tasks: int, scale: Scale) -> None:
        super().__init__(num_tasks)
        self.scale: Scale = scale

    def solve(self, products: Array, rounding: float) -> Array:
        weights: Array = aligned(products, rounding, self.scale).sum(1)
        return weights


class AlignedMTLSpec(GradientWeightingSpec):
    """Sums the gradients after scaling their principal components to one length.

    `scale` chooses that length: the smallest singular value, the median or the root mean square.

    Example: `weighting: {name: aligned_mtl, scale: median}`
    """

    name: Literal["aligned_mtl"] = "aligned_mtl"
    helps: ClassVar[str] = (
        "the joint problem is ill-conditioned: gradients dominate or are nearly parallel"
    )
    scale: Scale = "min"

    def build(self, tasks: Sequence[Task]) -> AlignedMTL:
        return AlignedMTL(len(tasks), self.scale)
