"""IMTL-L, impartial learning by loss balance (Liu et al., ICLR 2021): sum_t (e^{s_t} L_t - s_t)."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from raymtl.types import Task
from raymtl.weighting.base import LossWeighting, LossWeightingSpec


class IMTLL(LossWeighting):
    """Learns s_t, which starts at 0, with the outer optimiser. At the optimum every scaled loss
    e^{s_t} L_t is 1.
    """

    knows_weights: ClassVar[bool] = True

    def __init__(self, num_tasks: int) -> None:
        super().__init__(num_tasks)
        self.log_scale = nn.Parameter(torch.zeros(num_tasks))

    def loss_weights(self) -> Tensor:
        return self.log_scale.exp()

    def weigh(self, losses: Tensor, tasks: Tensor) -> Tensor:
        log_scale = self.log_scale[tasks]
        return (log_scale.exp() * losses - log_scale).sum()


class IMTLLSpec(LossWeightingSpec):
    """Learns a scale for each loss that brings it to 1.

    Example: `weighting: {name: imtl_l}`
    """

    name: Literal["imtl_l"] = "imtl_l"
    helps: ClassVar[str] = "losses differ in scale; costs nothing"

    def build(self, tasks: Sequence[Task]) -> IMTLL:
        return IMTLL(len(tasks))
