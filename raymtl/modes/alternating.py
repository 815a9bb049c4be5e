"""Alternating optimisation: parts of the model, or tasks, take turns."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from raymtl.modes.base import Mode


class Alternating(Mode):
    """Parts of the model, or the tasks, take turns: one a step.

    `by: parts` moves everything but the heads in even steps (counted from 0) and the heads alone in
    odd ones. `by: tasks` draws one task a step with p_t ~ N_t^power, N_t being its labelled
    training examples (power 1: proportional to its size, 0: uniform, between them as in
    arXiv:1902.02671): only its query loss counts, while the inner loop adapts to the labels of all
    tasks, as it will when the model is used.

    Example: `mode: {name: alternating, by: tasks, power: 0.5}`
    """

    name: Literal["alternating"] = "alternating"
    helps: ClassVar[str] = "heads and trunk disturb each other, or tasks differ much in size"
    costs: ClassVar[str] = "1; `by: tasks` one task's loss"
    by: Literal["parts", "tasks"] = "parts"
    power: Annotated[float, Field(ge=0)] = 1.0

    @property
    def one_task_a_step(self) -> bool:
        return self.by == "tasks"

    def query_tasks(self, step: int, seed: int, sizes: Mapping[str, int]) -> frozenset[str]:
        if self.by == "parts":
            return frozenset(sizes)
        logarithms = self.power * np.log(np.array(list(sizes.values()), float))
        odds = np.exp(logarithms - logarithms.max())
        return frozenset(
            [str(np.random.default_rng([seed, step]).choice(list(sizes), p=odds / odds.sum()))]
        )

    def moves(self, step: int, parameter: str) -> bool:
        return self.by == "tasks" or parameter.startswith("model.heads.") == bool(step % 2)
