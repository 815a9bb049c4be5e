"""Uncertainty weighting (Kendall et al., 2018, arXiv:1705.07115)."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from raymtl.types import Task
from raymtl.weighting.base import LossWeighting, LossWeightingSpec


class Uncertainty(LossWeighting):
    """Learns s_t = log sigma_t^2 of each task; total = sum_t (c_t e^{-s_t} L_t + s_t / 2).

    c_t is 1/2 for regression and 1 for classification. s_t starts at 0, a variance of 1.
    """

    knows_weights: ClassVar[bool] = True

    scale: Tensor

    def __init__(self, scale: Tensor) -> None:
        super().__init__(len(scale))
        self.register_buffer("scale", scale)
        self.log_variance = nn.Parameter(torch.zeros_like(scale))

    def loss_weights(self) -> Tensor:
        return self.scale.to(self.log_variance) * torch.exp(-self.log_variance)

    def weigh(self, losses: Tensor, tasks: Tensor) -> Tensor:
        return (self.loss_weights()[tasks] * losses + self.log_variance[tasks] / 2).sum()


class UncertaintySpec(LossWeightingSpec):
    """Learns a variance for each task, and weighs its loss by the inverse.

    Example: `weighting: {name: uncertainty}`
    """

    name: Literal["uncertainty"] = "uncertainty"
    helps: ClassVar[str] = "losses have different scales or noise; costs nothing"

    def build(self, tasks: Sequence[Task]) -> Uncertainty:
        return Uncertainty(
            torch.tensor([0.5 if task.kind.predicts_numbers else 1.0 for task in tasks])
        )
