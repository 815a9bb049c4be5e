"""Successive training from low tasks to high ones (Hashimoto et al., 2017, arXiv:1611.01587)."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from pydantic import NonNegativeFloat, PositiveInt

from raymtl.modes.base import Mode


class Hierarchical(Mode):
    """The tasks take turns in `order`, `period` steps each, drawn by strength |theta - theta'|^2 to
    where they began.

    theta' is the model at the beginning of the turn, so that a high task does not undo what a low
    one has learned (the paper's successive regularisation; there over whole epochs, and over the
    layers below the task alone). Only the task's query loss counts in its turn. Without `order` the
    tasks follow each other as the data names them.

    Example: `mode: {name: hierarchical, order: [left, right], period: 20}`
    """

    name: Literal["hierarchical"] = "hierarchical"
    helps: ClassVar[str] = "high tasks build upon low ones"
    costs: ClassVar[str] = "1, one task's loss"
    order: tuple[str, ...] = ()
    period: PositiveInt = 10
    strength: NonNegativeFloat = 0.01

    @property
    def one_task_a_step(self) -> bool:
        return True

    @property
    def anchor_strength(self) -> float:
        return self.strength

    def check(self, tasks: Sequence[str]) -> tuple[str, str] | None:
        if self.order and sorted(self.order) != sorted(tasks):
            return (
                "order",
                f"expected every task of {list(tasks)} once, got {list(self.order)}. Correct the "
                "list.",
            )
        return None

    def query_tasks(self, step: int, seed: int, sizes: Mapping[str, int]) -> frozenset[str]:
        order = self.order or tuple(sizes)
        return frozenset([order[step // self.period % len(order)]])

    def is_anchor_step(self, step: int) -> bool:
        return step % self.period == 0
