"""GradDrop, gradient sign dropout (Chen et al., 2020, arXiv:2010.06808).

Per coordinate, P = 1/2 (1 + sum_t g_t / sum_t |g_t|): its chance that the positive entries are
kept, else the negative.
"""

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import leaky_relu_

from raymtl.types import Task
from raymtl.weighting.base import GradientWeighting, GradientWeightingSpec, Jacobian

PIECE = 8192


def draw_chances(num_coordinates: int, num_updates: int) -> Tensor:
    """Uniform numbers [P] in [0, 1), the same on all workers and devices and after a resume."""
    return torch.rand(num_coordinates, generator=torch.Generator().manual_seed(num_updates))


def drop(rows: Tensor, chances: Tensor, leak: float) -> Tensor:
    """The rows [K, P] with the entries of the sign that loses scaled by `leak`."""
    dropped = torch.empty_like(rows)
    # Pieces that stay in the processor's cache take less than half the time.
    if rows.device.type == "cpu":
        width = PIECE
    else:
        width = rows.shape[1]
    for before, after, chance in zip(
        *(x.split(width, -1) for x in (rows, dropped, chances.to(rows))), strict=True
    ):
        # P > U, without the division: sum_t g_t > (2 U - 1) sum_t |g_t|.
        sign = torch.where(before.sum(0) > (2 * chance - 1) * before.abs().sum(0), 1.0, -1.0).to(
            rows
        )
        leaky_relu_(torch.mul(before, sign, out=after), leak)
        after.mul_(sign)
    return dropped


class GradDrop(GradientWeighting):
    """Keeps in each coordinate only the gradients of one sign, which is drawn with a probability
    that depends on their sizes.

    The rows that are left are summed. `leak`, one number for all tasks, is the share of the dropped
    entries that remains. The random signs depend only on the number of updates so far. A task alone
    and entries that are zero stay as they are.

    Deviation from the paper: coordinates are those of the shared parameters, as in TorchJD. The
    paper drops entries of the gradient with respect to the shared features, by the sign of feature
    times gradient.
    """

    num_updates: Tensor

    def __init__(self, num_tasks: int, leak: float) -> None:
        super().__init__(num_tasks)
        self.leak = leak
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.int64))

    def weigh(self, losses: Tensor, jacobian: Jacobian, tasks: Tensor) -> Tensor:
        seed = int(self.num_updates)
        self.num_updates = self.num_updates + 1
        jacobian.change(lambda rows: drop(rows, draw_chances(rows.shape[1], seed), self.leak))
        return torch.ones_like(losses)


class GradDropSpec(GradientWeightingSpec):
    """Keeps one sign in each coordinate, at random; the share `leak` of the other remains.

    Example: `weighting: {name: graddrop, leak: 0.1}`
    """

    name: Literal["graddrop"] = "graddrop"
    helps: ClassVar[str] = "conflicts are in single weights rather than in whole gradients"
    leak: Annotated[float, Field(ge=0, le=1)] = 0.0

    def build(self, tasks: Sequence[Task]) -> GradDrop:
        return GradDrop(len(tasks), self.leak)
