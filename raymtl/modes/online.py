"""Online multi-task learning: tasks arrive as a stream, and what a step loses is counted before it
learns from it.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field, NonNegativeInt

from raymtl.modes.base import Mode


class Online(Mode):
    """Tasks arrive as a stream: before the step that `arrivals` names, 0 unless given, a task has
    no labels.

    Every step's losses are those of episodes not learned from yet. `raymtl train` reports the
    regret: the sum over steps of the mean loss of the tasks that have arrived, minus that of the
    best of `comparators` trainings on the same stream with fixed weights (equal ones and points
    drawn from the simplex; best in hindsight).

    Example: `mode: {name: online, arrivals: {right: 100}}`
    """

    name: Literal["online"] = "online"
    helps: ClassVar[str] = "tasks come one after the other and what is lost on the way counts"
    costs: ClassVar[str] = "1; `comparators` further trainings for the regret"
    arrivals: Mapping[str, NonNegativeInt] = {}
    comparators: Annotated[int, Field(ge=1)] = 6

    @property
    def divides_gradient(self) -> bool:
        return False

    def check(self, tasks: Sequence[str]) -> tuple[str, str] | None:
        for name in self.arrivals:
            if name not in tasks:
                return f"arrivals.{name}", f"expected one of the tasks {list(tasks)}, got '{name}'."
        if len(self.arrivals) == len(tasks) and min(self.arrivals.values()) > 0:
            return (
                "arrivals",
                f"expected a task at step 0, got {dict(self.arrivals)}. Leave one task out.",
            )
        return None

    def comparisons(self, tasks: Sequence[str], seed: int) -> list[dict[str, float]]:
        drawn = np.random.default_rng(seed).dirichlet(np.ones(len(tasks)), self.comparators - 1)
        rows = np.concatenate([np.full((1, len(tasks)), 1 / len(tasks)), drawn])
        return [dict(zip(tasks, row, strict=True)) for row in rows.tolist()]

    def support_tasks(self, step: int, tasks: Sequence[str]) -> frozenset[str]:
        return frozenset(name for name in tasks if self.arrivals.get(name, 0) <= step)
