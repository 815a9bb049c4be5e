"""Soft parameter sharing (Evgeniou & Pontil, 2004, KDD): every task its own trunk, drawn toward the
tasks' mean.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import NonNegativeFloat
from torch import Tensor, nn

from raymtl.encoders import Encoder
from raymtl.sharing.base import SharingArchitecture, SharingSpecBase
from raymtl.types import Params, Task


class Soft(SharingArchitecture):
    """Each task has its own trunk, and a penalty draws all trunks toward their mean.

    The penalty is strength * sum_t |theta_t - mean_s theta_s|^2 over the trunks, a sum over tasks
    and parameters: its gradient with respect to theta_t is 2 * strength * (theta_t - mean). No
    parameter is shared by two losses. Deviation from the paper: it has kernel machines, here the
    theta_t are whole encoders, heads left out.
    """

    def __init__(self, tasks: Sequence[Task], encoders: Sequence[Encoder], strength: float) -> None:
        super().__init__(tasks, encoders[0].shapes[-1])
        self.encoders = nn.ModuleList(encoders)
        self.strength = strength

    @property
    def shared(self) -> frozenset[str]:
        return frozenset()

    def features(self, inputs: Tensor, tasks: Sequence[str]) -> Mapping[str, Tensor]:
        towers = dict(zip(self.task_names, self.encoders, strict=True))
        return {name: towers[name](inputs) for name in tasks}

    def penalty(self, params: Params) -> Tensor:
        total = super().penalty(params)
        for name, _ in self.encoders[0].named_parameters():
            trunks = torch.stack(
                [params[f"encoders.{index}.{name}"] for index in range(len(self.encoders))]
            )
            total = total + (trunks - trunks.mean(0)).square().sum()
        return self.strength * total


class SoftSpec(SharingSpecBase):
    """Each task has its own trunk, and a penalty draws all trunks toward their mean.

    `strength` is lambda; at 0 the tasks learn independently.

    Example: `sharing: {name: soft, strength: 0.01}`
    """

    name: Literal["soft"] = "soft"
    helps: ClassVar[str] = "tasks are related but not alike, and there are data for a network each"
    strength: NonNegativeFloat = 0.001

    def num_encoders(self, num_tasks: int) -> int:
        return num_tasks

    def build(
        self, tasks: Sequence[Task], encoders: Sequence[Encoder], isolate_task_graphs: bool = False
    ) -> Soft:
        return Soft(tasks, encoders, self.strength)
