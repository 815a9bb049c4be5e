"""DB-MTL, dual balancing (Lin et al., 2023, arXiv:2308.12029).

e_t <- beta e_t + (1 - beta) grad log L_t; joint gradient = sum_t (max_s |e_s| / |e_t|) e_t.
"""

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from raymtl.types import Task
from raymtl.weighting.base import GradientWeighting, GradientWeightingSpec, Jacobian

FLOOR = 1e-8


class DBMTL(GradientWeighting):
    """Takes the logarithms of the losses, averages their gradients over steps and scales the
    averages to the largest norm among them.

    The weights multiply the averages e_t, so they are at least 1. The joint gradient is that of the
    log losses, as in the paper: it does not depend on the unit of the losses and does not shrink
    with them. The averages start at 0, as in the paper. One gradient [P] is kept for each task.

    Deviations from the paper:
    - Parameters of a single task follow the gradient of L_t, in the paper that of log L_t.
    - A loss below 1e-8 counts as 1e-8.
    """

    averages: Tensor

    def __init__(self, num_tasks: int, beta: float) -> None:
        super().__init__(num_tasks)
        self.beta = beta
        self.register_buffer("averages", torch.zeros(num_tasks, 0))

    def weigh(self, losses: Tensor, jacobian: Jacobian, tasks: Tensor) -> Tensor:
        scale = losses.detach().clamp(min=FLOOR)[:, None]

        def average(rows: Tensor) -> Tensor:
            if self.averages.numel():
                old = self.averages.to(rows)
            else:
                old = rows.new_zeros(self.num_tasks, rows.shape[1])
            moved = self.beta * old[tasks] + (1 - self.beta) * rows / scale
            self.averages = old.index_put((tasks,), moved)
            return moved

        jacobian.change(average)
        norms = jacobian.gramian().diagonal().clamp(min=0).sqrt()
        # A gradient that is zero has no direction to scale.
        return torch.where(norms > 0, norms.max() / norms, 1)


class DBMTLSpec(GradientWeightingSpec):
    """Takes the logarithm of the losses, averages their gradients and scales them to one norm.

    `beta` is the share of the past in the average.

    Example: `weighting: {name: db_mtl, beta: 0.8}`
    """

    name: Literal["db_mtl"] = "db_mtl"
    helps: ClassVar[str] = "losses and gradients both differ in scale"
    beta: Annotated[float, Field(ge=0, lt=1)] = 0.9

    def build(self, tasks: Sequence[Task]) -> DBMTL:
        return DBMTL(len(tasks), self.beta)
