"""Random loss weighting, RLW (Lin et al., 2022, arXiv:2111.10603).

w = K softmax(n), where each n_t ~ N(0, 1) is drawn anew at each step.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from raymtl.types import Task
from raymtl.weighting.base import LossWeighting, LossWeightingSpec


def draw(num_tasks: int, num_updates: int) -> Tensor:
    """Normal numbers [num_tasks], the same on all workers, in all precisions and after a resume."""
    return torch.randn(
        num_tasks, generator=torch.Generator().manual_seed(num_updates), dtype=torch.float64
    )


class Random(LossWeighting):
    """K times the softmax of K normal numbers that are drawn anew after each step.

    The inner loop and the outer step that follows it use the same draw. A task without labels keeps
    its number until it has been used.
    """

    logits: Tensor
    num_updates: Tensor

    def __init__(self, num_tasks: int) -> None:
        super().__init__(num_tasks)
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.int64))
        self.register_buffer("logits", draw(num_tasks, 0).to(torch.get_default_dtype()))

    def loss_weights(self) -> Tensor:
        return self.num_tasks * self.logits.softmax(0)

    def weigh(self, losses: Tensor, tasks: Tensor) -> Tensor:
        logits = self.logits.to(losses)
        self.num_updates = self.num_updates + 1
        fresh = draw(self.num_tasks, int(self.num_updates)).to(losses)
        self.logits = logits.index_put((tasks,), fresh[tasks])
        return len(tasks) * logits[tasks].softmax(0)


class RandomSpec(LossWeightingSpec):
    """Draws new weights for each step.

    Example: `weighting: {name: random}`
    """

    name: Literal["random"] = "random"
    helps: ClassVar[str] = "a sanity check: what cannot beat it does not weigh, it only adds noise"

    def build(self, tasks: Sequence[Task]) -> Random:
        return Random(len(tasks))
