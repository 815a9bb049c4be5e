"""ExcessMTL (He et al., 2024, arXiv:2402.02009).

Excess risk E_t = g_t^T H_t^-1 g_t, H_t = diag(sqrt(sum over steps of g_t^2)); w_t <- w_t exp(lr E_t
/ E_t(0)).
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from raymtl.types import Task
from raymtl.weighting.base import GradientWeighting, GradientWeightingSpec, Jacobian

EPS = 1e-7
BLOCK = 1 << 14  # columns that are worked on at once, so that they stay in a CPU's cache


class ExcessMTL(GradientWeighting):
    """Gives more weight to tasks that are far from the loss that they could reach, whatever their
    label noise.

    E_t(0) is the mean of E_t over the first `warmup` steps that have labels of task t. During these
    steps E_t / E_t(0) counts as 1, which changes no weight while all tasks warm up. A step uses the
    weights after w has moved. Gradients are those of the shared parameters; the parameters of a
    single task follow its loss unweighted. The sum of the squared gradients [P] is kept for each
    task.

    Deviation from the paper: the weights sum to K, not to 1. The tasks that have labels in a step
    keep the sum of their weights, so the weights of all tasks always sum to num_tasks.
    """

    log_weights: Tensor
    squares: Tensor
    baseline: Tensor

    def __init__(self, num_tasks: int, lr: float, warmup: int) -> None:
        super().__init__(num_tasks)
        self.lr, self.warmup = lr, warmup
        self.register_buffer("log_weights", torch.zeros(num_tasks))
        self.register_buffer("squares", torch.zeros(num_tasks, 0))
        self.register_buffer(
            "baseline", torch.zeros(num_tasks, 2)
        )  # a row a task: E_t(0), and of how many steps

    def loss_weights(self) -> Tensor:
        return self.log_weights.exp()

    def weigh(self, losses: Tensor, jacobian: Jacobian, tasks: Tensor) -> Tensor:
        self._move(jacobian.rows(), tasks)
        return len(tasks) * self.log_weights[tasks].softmax(0)

    def _move(self, rows: Tensor, tasks: Tensor) -> None:
        if self.squares.numel():
            squares_before = self.squares
        else:
            squares_before = rows.new_zeros(self.num_tasks, rows.shape[1])
        self.squares = squares_before.to(rows)
        excess = rows.new_zeros(len(rows))
        for gradients, squares in zip(
            rows.split(BLOCK, dim=1), self.squares.split(BLOCK, dim=1), strict=True
        ):
            new = gradients.square()
            summed = squares.index_add_(0, tasks.to(rows.device), new)[tasks]
            excess += (new / (summed + EPS).sqrt()).sum(1)

        baseline = self.baseline.to(rows)
        mean, number = baseline[tasks].unbind(1)
        learning = number < self.warmup
        relative = torch.where(learning, 1, excess / (mean + EPS))
        mean = torch.where(learning, mean + (excess - mean) / (number + 1), mean)

        log_weights = self.log_weights.to(rows)
        present_weights = log_weights[tasks]
        moved = (present_weights + self.lr * relative).log_softmax(0) + present_weights.logsumexp(0)

        self.baseline = baseline.index_put((tasks,), torch.stack([mean, number + learning], 1))
        self.log_weights = log_weights.index_put((tasks,), moved)


class ExcessMTLSpec(GradientWeightingSpec):
    """Gives more weight to tasks that can still improve.

    `lr` is the learning rate of the weights. The first `warmup` steps set the scale of each task.

    Example: `weighting: {name: excess_mtl, lr: 0.05, warmup: 20}`
    """

    name: Literal["excess_mtl"] = "excess_mtl"
    helps: ClassVar[str] = "labels of some tasks are noisy: what cannot be learned should not weigh"
    lr: PositiveFloat = 0.01
    warmup: PositiveInt = 50

    def build(self, tasks: Sequence[Task]) -> ExcessMTL:
        return ExcessMTL(len(tasks), self.lr, self.warmup)
