"""FAMO, fast adaptive multitask optimisation (Liu et al., 2023, arXiv:2306.03792).

z = softmax(w); total = sum_t z_t log(L_t - b_t) / c with c = sum_t z_t / (L_t - b_t) held constant.
After the move, w descends J_z^T (log(L - b) before - log(L - b) after) + gamma w, J_z the Jacobian
of the softmax.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from raymtl.types import Task
from raymtl.weighting.adam import adam
from raymtl.weighting.base import LossWeighting, LossWeightingSpec

FLOOR = 1e-8


class FAMO(LossWeighting):
    """Lets the logarithms of all losses fall at the same rate.

    It keeps only a few numbers for each task. An Adam of its own moves w, as in the authors' code.

    Deviations from the paper:
    - The total is K times the paper's, so that the weights K (z_t / (L_t - b_t)) / c sum to K.
    - L_t - b_t below 1e-8 counts as 1e-8.
    """

    logits: Tensor
    moments: Tensor
    lower_bounds: Tensor

    def __init__(self, lower_bounds: Tensor, lr: float, weight_decay: float) -> None:
        super().__init__(len(lower_bounds))
        self.lr, self.weight_decay = lr, weight_decay
        self.register_buffer("lower_bounds", lower_bounds)
        self.register_buffer("logits", torch.zeros(len(lower_bounds)))
        self.register_buffer("moments", torch.zeros(len(lower_bounds), 3))

    def loss_weights(self) -> Tensor:
        return self.num_tasks * self.logits.softmax(0)

    def weigh(self, losses: Tensor, tasks: Tensor) -> Tensor:
        return len(tasks) * (self.logits.to(losses)[tasks] - self._log(losses, tasks)).softmax(0)

    def update_after_step(self, before: Tensor, after: Tensor, tasks: Tensor) -> None:
        logits, state = self.logits.to(before), self.moments.to(before)
        drop = self._log(before, tasks) - self._log(after, tasks)
        z = logits[tasks].softmax(0)
        gradient = z * (drop - z @ drop) + self.weight_decay * logits[tasks]
        direction, moved = adam(gradient, state[tasks])
        self.logits = logits.index_put((tasks,), logits[tasks] - self.lr * direction)
        self.moments = state.index_put((tasks,), moved)

    def _log(self, losses: Tensor, tasks: Tensor) -> Tensor:
        return (losses.detach() - self.lower_bounds.to(losses)[tasks]).clamp(min=FLOOR).log()


class FAMOSpec(LossWeightingSpec):
    """Lets all losses fall at the same relative rate.

    `lower_bounds` are those of the losses by task name, 0 for a task that is not named. `lr` and
    `weight_decay` belong to the Adam that moves the weights.

    Example: `weighting: {name: famo, lr: 0.01, lower_bounds: {left: 0.1}}`
    """

    name: Literal["famo"] = "famo"
    helps: ClassVar[str] = "many tasks: balanced progress without per-task gradients"
    needs_post_step_losses: ClassVar[bool] = True
    lr: PositiveFloat = 0.025
    weight_decay: NonNegativeFloat = 1e-3
    lower_bounds: Mapping[str, float] = {}

    def check(self, tasks: Sequence[str]) -> tuple[str, str] | None:
        for name in self.lower_bounds:
            if name not in tasks:
                return (
                    f"lower_bounds.{name}",
                    f"expected one of the tasks {list(tasks)}, got '{name}'.",
                )
        return None

    def build(self, tasks: Sequence[Task]) -> FAMO:
        bounds = torch.tensor([self.lower_bounds.get(task.name, 0.0) for task in tasks])
        return FAMO(bounds, self.lr, self.weight_decay)
