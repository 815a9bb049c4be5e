"""Dynamic weight average, DWA (Liu et al., 2019, arXiv:1803.10704): w = K softmax(r / T), r_t =
L_t(i-1) / L_t(i-2).
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from raymtl.types import Task
from raymtl.weighting.base import LossWeighting, LossWeightingSpec


class DWA(LossWeighting):
    """Gives more weight to a task whose loss falls more slowly than those of the others.

    L_t(i) is the mean loss of task t over window i. r_t is 1, its first value in the paper, until
    task t has two full windows, and where the older mean is 0.

    Deviation from the paper: a window is `period` steps that have labels of the task, not an epoch.
    """

    windows: Tensor

    def __init__(self, num_tasks: int, period: int, temperature: float) -> None:
        super().__init__(num_tasks)
        self.period, self.temperature = period, temperature
        # A row a task: sum and number of the losses of the open window, mean of the last full one,
        # of the one before.
        self.register_buffer("windows", torch.zeros(num_tasks, 4))

    def loss_weights(self) -> Tensor:
        return self._weights(self.windows)

    def weigh(self, losses: Tensor, tasks: Tensor) -> Tensor:
        windows = self.windows.to(losses)
        total, number, last, older = windows[tasks].unbind(1)
        total, number = total + losses.detach(), number + 1
        closed = torch.stack(
            [torch.zeros_like(total), torch.zeros_like(total), total / number, last], 1
        )
        still_open = torch.stack([total, number, last, older], 1)
        rows = torch.where((number == self.period)[:, None], closed, still_open)
        self.windows = windows.index_put((tasks,), rows)
        return self._weights(windows[tasks])

    def _weights(self, windows: Tensor) -> Tensor:
        _, _, last, older = windows.unbind(1)
        rates = torch.where(older > 0, last / older, 1)
        return len(rates) * (rates / self.temperature).softmax(0)


class DWASpec(LossWeightingSpec):
    """Gives more weight to tasks whose loss falls slowly.

    `period` is the length of a window in steps. A high `temperature` makes the weights more equal.

    Example: `weighting: {name: dwa, period: 100, temperature: 1.0}`
    """

    name: Literal["dwa"] = "dwa"
    helps: ClassVar[str] = "some tasks learn more slowly than others; costs nothing"
    period: PositiveInt = 50
    temperature: PositiveFloat = 2.0

    def build(self, tasks: Sequence[Task]) -> DWA:
        return DWA(len(tasks), self.period, self.temperature)
