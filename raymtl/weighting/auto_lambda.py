"""Auto-Lambda (Liu et al., 2022, arXiv:2202.03091).

min over lambda of sum_{t primary} L_t^val(theta'), theta' = theta - alpha grad sum_s lambda_s
L_s^train(theta).
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import PositiveFloat
from torch import Tensor

from raymtl.types import Task
from raymtl.weighting.adam import adam
from raymtl.weighting.base import GradientWeighting, GradientWeightingSpec, Jacobian


def hypergradient(now: Tensor, before: Tensor) -> Tensor:
    """d/d lambda_s of the primary tasks' loss after a step of rate 1 along sum_s lambda_s g_s: [K].

    `now` [P] is that loss's gradient where the step led, `before` [K, P] the gradients g_s that it
    followed. A step of rate alpha has alpha times as much.
    """
    return -before @ now


class AutoLambda(GradientWeighting):
    """Raises the weights whose gradients helped the primary tasks on the batch that came next.

    Every batch is fresh, so the next step's batch serves as the validation batch. For an outer step
    of plain SGD at rate alpha, -alpha <sum_t g_t(now), g_s(previous)> is the paper's hypergradient
    itself, of disjoint training and validation batches and without its finite differences, but it
    comes one step later, when the move has been made. For another outer optimiser it leaves out
    what that makes of the gradient. Where step and label patterns differ, `previous` is the last
    step that had labels of task s, which is true to first order in alpha.

    lambda descends by an Adam of its own, as in the authors' code, to which the size of alpha makes
    no difference; but in log lambda, so that lambda stays positive and `lr` is a relative change.
    It starts at 1 (0.1 in the paper, which is a tenth of the learning rate) and is not
    renormalised, for its sum is learned too; the inner loop's weights are scaled to sum to
    num_tasks. Gradients are on the shared parameters, the only ones that lambda acts on. Keeps a
    gradient a task.
    """

    log_lambda: Tensor
    moments: Tensor
    previous: Tensor
    primary: Tensor

    def __init__(self, primary: Tensor, lr: float) -> None:
        """`primary` [num_tasks] is 1 where a task is primary, else 0."""
        super().__init__(len(primary))
        self.lr = lr
        self.register_buffer("primary", primary)
        self.register_buffer("log_lambda", torch.zeros(len(primary)))
        self.register_buffer("moments", torch.zeros(len(primary), 3))
        self.register_buffer("previous", torch.zeros(len(primary), 0))

    def loss_weights(self) -> Tensor:
        return self.num_tasks * self.log_lambda.softmax(0)

    def weigh(self, losses: Tensor, jacobian: Jacobian, tasks: Tensor) -> Tensor:
        self._move(jacobian.rows(), tasks)
        return self.log_lambda[tasks].exp()

    def _move(self, rows: Tensor, tasks: Tensor) -> None:
        if self.previous.numel():
            previous = self.previous.to(rows)
        else:
            previous = rows.new_zeros(self.num_tasks, rows.shape[1])
        log_lambda, state = self.log_lambda.to(rows), self.moments.to(rows)
        log_weights = log_lambda[tasks]
        slope = log_weights.exp() * hypergradient(
            self.primary.to(rows)[tasks] @ rows, previous[tasks]
        )
        direction, moved = adam(slope, state[tasks])
        self.log_lambda = log_lambda.index_put((tasks,), log_weights - self.lr * direction)
        self.moments = state.index_put((tasks,), moved)
        self.previous = previous.index_put((tasks,), rows)


class AutoLambdaSpec(GradientWeightingSpec):
    """Learns weights that help the `primary` tasks; without any, all tasks are primary.

    `lr` is the learning rate of the weights.

    Example: `weighting: {name: auto_lambda, primary: [left], lr: 0.01}`
    """

    name: Literal["auto_lambda"] = "auto_lambda"
    helps: ClassVar[str] = "a few tasks are what counts, the others are there to help them"
    primary: tuple[str, ...] = ()
    lr: PositiveFloat = 1e-3

    def check(self, tasks: Sequence[str]) -> tuple[str, str] | None:
        for name in self.primary:
            if name not in tasks:
                return "primary", f"expected some of the tasks {list(tasks)}, got '{name}'."
        return None

    def build(self, tasks: Sequence[Task]) -> AutoLambda:
        primary = [float(not self.primary or task.name in self.primary) for task in tasks]
        return AutoLambda(torch.tensor(primary), self.lr)
