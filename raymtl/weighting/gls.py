"""Geometric loss strategy, GLS (Chennupati et al., 2019, arXiv:1904.08492): (prod_t L_t)^(1/K)."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from raymtl.types import Task
from raymtl.weighting.base import LossWeighting, LossWeightingSpec

FLOOR = 1e-8


class GLS(LossWeighting):
    """Minimises K times the geometric mean of the losses; the weight of task t is that mean divided
    by L_t.

    The weights have the product 1. As in the paper, when one loss tends to 0, so do the mean and
    the weights of the other tasks. The inner loop uses the weights of the step before, scaled to
    sum to num_tasks.

    Deviations from the paper:
    - The factor K, with which equal losses weigh 1 each.
    - A loss below 1e-8 counts as 1e-8, and its task weighs 0.
    """

    weights: Tensor

    def __init__(self, num_tasks: int) -> None:
        super().__init__(num_tasks)
        self.register_buffer("weights", torch.ones(num_tasks))

    def loss_weights(self) -> Tensor:
        return self.num_tasks * self.weights / self.weights.sum()

    def weigh(self, losses: Tensor, tasks: Tensor) -> Tensor:
        mean = losses.clamp(min=FLOOR).log().mean().exp()
        weights = torch.where(losses > FLOOR, mean / losses, 0).detach()
        self.weights = self.weights.to(losses).index_put((tasks,), weights)
        return len(losses) * mean


class GLSSpec(LossWeightingSpec):
    """Minimises the geometric mean of the losses, which does not depend on their units.

    Example: `weighting: {name: gls}`
    """

    name: Literal["gls"] = "gls"
    helps: ClassVar[str] = "losses differ in scale by orders of magnitude"

    def build(self, tasks: Sequence[Task]) -> GLS:
        return GLS(len(tasks))
