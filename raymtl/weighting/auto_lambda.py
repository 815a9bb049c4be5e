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
    """Returns the derivative [K] of the primary tasks' loss by each lambda_s.

    The loss is taken after a step of rate 1 along sum_s lambda_s g_s; for a step of rate alpha the
    derivative is alpha times this one.

    Args:
        now: [P], the gradient of the primary tasks' loss after the step.
        before: [K, P], the gradients g_s before the step.
    """
    return -before @ now


class AutoLambda(GradientWeighting):
    """Raises the weights whose gradients helped the primary tasks on the batch that came next.

    Every batch is new, so the batch of the next step serves as the validation batch. Where the
    outer optimiser is plain SGD at rate alpha, the paper's hypergradient of lambda_s is
    -alpha <sum_t g_t(now), g_s(previous)>, summed over the primary tasks t. It is known one step
    later, and needs no finite differences. For another outer optimiser this is an approximation,
    which leaves out what the optimiser makes of the gradient. `previous` is the last step that had
    labels of task s. If other steps came between, the value holds to first order in alpha.

    Deviations from the paper:
    - An Adam of its own moves log lambda, so that lambda stays positive and `lr` is a relative
      change. Adam also makes the size of alpha irrelevant. The authors' code uses Adam on lambda.
    - lambda starts at 1. In the paper it starts at 0.1, which only makes the learning rate smaller.
    - The sum of lambda is learned as well. The weights of the inner loop are scaled to sum to
      num_tasks.

    Gradients are those of the shared parameters, the only ones that lambda acts on. One gradient
    [P] is kept for each task.
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
