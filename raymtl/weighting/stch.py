"""Smooth Tchebycheff scalarisation, STCH (Lin et al., 2024, arXiv:2402.19078): mu log sum_t exp(x_t
/ mu).
"""

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from raymtl.types import Task
from raymtl.weighting.base import LossWeighting, LossWeightingSpec

FLOOR = 1e-8


class STCH(LossWeighting):
    """Follows the smooth maximum of x_t = log(L_t / reference_t), as the paper's multi-task
    experiments do.

    The reference of a task is the mean of its first `warmup` losses; during these steps it is the
    mean of those so far. So the unit of a task's loss does not change the direction of the joint
    gradient. The gradient of the smooth maximum has the weights p_t / L_t with p = softmax(x / mu).
    The inner loop uses the weights of the step before, scaled to sum to num_tasks.

    Deviations from the paper:
    - The weights are scaled to sum to K, so that equal losses weigh 1 and a learning rate keeps its
      meaning.
    - During the warm-up the authors' code minimises the sum of the log losses.
    - A loss below 1e-8 counts as 1e-8.
    """

    weights: Tensor
    references: Tensor

    def __init__(self, num_tasks: int, mu: float, warmup: int) -> None:
        super().__init__(num_tasks)
        self.mu, self.warmup = mu, warmup
        self.register_buffer("weights", torch.ones(num_tasks))
        self.register_buffer(
            "references", torch.zeros(num_tasks, 2)
        )  # a row a task: mean, and of how many losses

    def loss_weights(self) -> Tensor:
        return self.num_tasks * self.weights / self.weights.sum()

    def weigh(self, losses: Tensor, tasks: Tensor) -> Tensor:
        losses = losses.detach().clamp(min=FLOOR)
        references = self.references.to(losses)
        mean, number = references[tasks].unbind(1)
        learning = number < self.warmup
        mean = torch.where(learning, mean + (losses - mean) / (number + 1), mean)
        self.references = references.index_put((tasks,), torch.stack([mean, number + learning], 1))
        weights = len(losses) * ((losses / mean).log() / self.mu - losses.log()).softmax(0)
        self.weights = self.weights.to(losses).index_put((tasks,), weights)
        return weights


class STCHSpec(LossWeightingSpec):
    """Follows a smooth maximum of the losses, each relative to its mean over `warmup` steps.

    The smaller `mu`, the more the worst task leads. At mu = 1 the weights are constant.

    Example: `weighting: {name: stch, mu: 0.2, warmup: 20}`
    """

    name: Literal["stch"] = "stch"
    helps: ClassVar[str] = "the worst task counts, and the whole Pareto front should be reachable"
    mu: Annotated[float, Field(gt=0, le=1)] = 0.5
    warmup: PositiveInt = 50

    def build(self, tasks: Sequence[Task]) -> STCH:
        return STCH(len(tasks), self.mu, self.warmup)
