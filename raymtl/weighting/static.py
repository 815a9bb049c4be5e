"""Static weights: linear scalarisation, sum_t w_t L_t; what the search chooses from a simplex."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from pydantic import PositiveFloat
from torch import Tensor

from raymtl.types import Task
from raymtl.weighting.base import LossWeighting, WeightingSpecBase


class Static(LossWeighting):
    """Constant weights, scaled to sum to K so that equal weights are 1 and learning rates keep their meaning."""

    weights: Tensor

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.register_buffer("weights", weights * len(weights) / weights.sum())

    def forward(self, losses: Tensor, gramian: Callable[[], Tensor] | None = None) -> Tensor:
        return self.weights.to(losses)


class StaticSpec(WeightingSpecBase):
    """`weights` by task name, 1 where none is given; only their ratios matter."""

    name: Literal["static"] = "static"
    weights: Mapping[str, PositiveFloat] = {}

    def build(self, tasks: Sequence[Task]) -> Static:
        return Static(torch.tensor([self.weights.get(task.name, 1.0) for task in tasks]))
