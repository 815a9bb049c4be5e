"""Static weights: linear scalarisation, sum_t w_t L_t; what the search chooses from a simplex."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import PositiveFloat
from torch import Tensor

from raymtl.types import Task
from raymtl.weighting.base import LossWeighting, LossWeightingSpec


class Static(LossWeighting):
    """Constant weights.

    They are scaled to sum to K, so that equal weights are 1 and a learning rate keeps its meaning.
    """

    knows_weights: ClassVar[bool] = True

    weights: Tensor

    def __init__(self, weights: Tensor) -> None:
        super().__init__(len(weights))
        self.register_buffer(
            "weights", (weights * len(weights) / weights.sum()).to(torch.get_default_dtype())
        )

    def loss_weights(self) -> Tensor:
        return self.weights

    def weigh(self, losses: Tensor, tasks: Tensor) -> Tensor:
        return self.weights[tasks]


class StaticSpec(LossWeightingSpec):
    """Constant `weights` by task name, 1 for a task that is not named; only their ratios matter.

    Example: `weighting: {name: static, weights: {left: 2.0, right: 1.0}}`
    """

    name: Literal["static"] = "static"
    helps: ClassVar[str] = "the weights can be searched: at equal budget hard to beat"
    weights: Mapping[str, PositiveFloat] = {}

    def check(self, tasks: Sequence[str]) -> tuple[str, str] | None:
        for name in self.weights:
            if name not in tasks:
                return f"weights.{name}", f"expected one of the tasks {list(tasks)}, got '{name}'."
        return None

    def build(self, tasks: Sequence[Task]) -> Static:
        return Static(
            torch.tensor([self.weights.get(task.name, 1.0) for task in tasks], dtype=torch.float64)
        )
