"""Equal weights (Caruana, 1997): sum_t L_t."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from raymtl.types import Task
from raymtl.weighting.base import LossWeighting, LossWeightingSpec


class Equal(LossWeighting):
    """Every task weighs 1, so the total is the sum of the losses."""

    knows_weights: ClassVar[bool] = True

    def weigh(self, losses: Tensor, tasks: Tensor) -> Tensor:
        return torch.ones_like(losses)


class EqualSpec(LossWeightingSpec):
    """Gives every task the weight 1.

    Example: `weighting: {name: equal}`
    """

    name: Literal["equal"] = "equal"
    helps: ClassVar[str] = "the default that everything has to beat"

    def build(self, tasks: Sequence[Task]) -> Equal:
        return Equal(len(tasks))
