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

    The factor K is not the paper's: with it equal losses weigh 1 each, and always the product of
    the weights is 1. Losses must be positive: one below 1e-8 counts as 1e-8 and itself weighs 0.
    With it the mean tends to 0, and so do the weights of the other tasks, as in the paper. The
    inner loop takes the weights of the step before, scaled to sum to num_tasks.
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
