"""IMTL-G, impartial learning by gradient balance (Liu et al., ICLR 2021): <g_t, d> / |g_t| equal
for all tasks t.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
from torch import Tensor

from raymtl.types import Task
from raymtl.weighting.base import Jacobian, LossWeighting, WeightingSpecBase
from raymtl.weighting.gramian import Array, equal_projections, leaving_out_zeros, solved


def impartial(products: Array, rounding: float) -> Array:
    """Weights [K] at which the joint gradient has equal projections on all gradients; absolute
    values sum to K.
    """
    weights = equal_projections(products, rounding)
    size = np.abs(weights).sum()
    if size == 0:
        return weights
    return len(weights) * weights / size


class IMTLG(LossWeighting):
    """The joint gradient has the same positive projection on every task's gradient.

    Weights may be negative. Their absolute values sum to K, while in the paper the weights sum to 1
    (so does TorchJD's solution): where all are positive that is K times the paper's. Where some are
    negative the paper's sum may be near 0, so that the step explodes, or below, so that all losses
    rise. The unit of a task's loss makes no difference to the direction. Linearly dependent
    gradients get the projections nearest to equal, opposite ones weigh 0. A task whose gradient is
    zero takes no part.
    """

    def weigh(self, losses: Tensor, jacobian: Jacobian | None, tasks: Tensor) -> Tensor:
        assert jacobian is not None
        return solved(leaving_out_zeros(impartial), jacobian.gramian())


class IMTLGSpec(WeightingSpecBase):
    """A joint gradient with equal projections on those of all tasks; no hyperparameters."""

    name: Literal["imtl_g"] = "imtl_g"
    helps: ClassVar[str] = "no task's gradient may dominate by its size"
    needs_gradients: ClassVar[bool] = True

    def build(self, tasks: Sequence[Task]) -> IMTLG:
        return IMTLG(len(tasks))
