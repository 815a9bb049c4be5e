"""Trainings as rows of the dashboard's table of tasks.

The dashboard shows actors by names that they keep for life, and an actor of Ray Tune runs one trial
after the other. A task has a name of its own: here one waits as long as a training takes, and ends
as it ends. Nothing heavy is imported: the actor's process needs Ray alone.
"""

import asyncio
from itertools import count
from textwrap import shorten
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

MOST_AT_ONCE = 10_000
"""Trainings that can be under way at the same time."""

MOST_LETTERS = 80
"""Of an outcome in the name of its row; the error of a row that failed has them all."""


class EndedError(Exception):
    """How the row of a training that failed ends; its text is the reason."""


class Trainings:
    """Holds a row for each training that is under way. Its calls may arrive in any order."""

    def __init__(self) -> None:
        self.ends: dict[int, asyncio.Future[None]] = {}

    def _end(self, row: int) -> "asyncio.Future[None]":
        return self.ends.setdefault(row, asyncio.get_running_loop().create_future())

    async def training(self, row: int) -> None:
        """Waits for its end. Raises EndedError with the reason where it failed."""
        try:
            await self._end(row)
        finally:
            del self.ends[row]

    async def outcome(self, row: int, failed: str | None) -> None:
        """Ends the row, as failed where a reason is given."""
        if failed is None:
            self._end(row).set_result(None)
        else:
            self._end(row).set_exception(EndedError(failed))


class Rows:
    """The rows of one run, in a process beside its driver that takes no CPU of the cluster and ends
    with the driver.
    """

    def __init__(self, run: str) -> None:
        self.run = run
        beside = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        made: Any = ray.remote(Trainings)
        # An earlier run of this driver, whose end takes a while, may still have the name.
        taken = set(ray.util.list_named_actors())
        name = f"trainings of {run}"
        numbers = count(2)
        while name in taken:
            name = f"trainings of {run}-{next(numbers)}"
        self.shown = made.options(
            name=name, num_cpus=0, max_concurrency=MOST_AT_ONCE, scheduling_strategy=beside
        ).remote()
        self.numbers = count()
        self.open: dict[str, tuple[int, ray.ObjectRef[None]]] = {}

    def start(self, name: str, details: str) -> None:
        """A row that runs, named after the training."""
        row = next(self.numbers)
        text = f"{self.run}/{name} {details}".rstrip()
        self.open[name] = row, self.shown.training.options(name=text).remote(row)

    def end(self, name: str, state: str, outcome: str, failed: bool) -> "list[ray.ObjectRef[None]]":
        """Ends that row, and adds one whose name says how; returns what is done when the dashboard
        has it.
        """
        row, waiting = self.open.pop(name)
        short = shorten(outcome, MOST_LETTERS, placeholder=" ...")
        text = f"{self.run}/{name} {state} {short}".rstrip()
        error = None
        if failed:
            error = f"{state}: {outcome}"
        return [waiting, self.shown.outcome.options(name=text).remote(row, error)]
