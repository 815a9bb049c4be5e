"""Trainings as rows of the dashboard's table of tasks.

The dashboard shows actors by names that they keep for life, and an actor of Ray Tune runs one trial after the other. A
task has a name of its own: here one waits as long as a training takes, and ends as it ends. Nothing heavy is imported:
the actor's process needs Ray alone.
"""

import asyncio
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

MOST_AT_ONCE = 10_000
"""Trainings that can be under way at the same time."""


class EndedError(Exception):
    """How the row of a training that failed ends; its text is the reason."""


class Trainings:
    """Holds a row for each training that is under way."""

    def __init__(self) -> None:
        self.ends: dict[str, asyncio.Future[None]] = {}

    async def training(self, name: str) -> None:
        """Waits for its end. Raises EndedError with the reason where it failed."""
        self.ends[name] = asyncio.get_running_loop().create_future()
        await self.ends[name]

    async def outcome(self, name: str, failed: str | None) -> None:
        """Ends the row of the training, as failed where a reason is given."""
        ended = self.ends.pop(name)
        if failed is None:
            ended.set_result(None)
        else:
            ended.set_exception(EndedError(failed))


class Rows:
    """The rows of one run, in a process beside its driver that takes no CPU of the cluster and ends with the driver."""

    def __init__(self, run: str) -> None:
        self.run = run
        beside = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        made: Any = ray.remote(Trainings)
        self.shown = made.options(
            name=f"trainings of {run}", num_cpus=0, max_concurrency=MOST_AT_ONCE, scheduling_strategy=beside
        ).remote()
        self.waiting: dict[str, ray.ObjectRef[None]] = {}

    def start(self, name: str, details: str) -> None:
        """A row that runs, named after the training."""
        text = f"{self.run}/{name} {details}".rstrip()
        self.waiting[name] = self.shown.training.options(name=text).remote(name)

    def end(self, name: str, outcome: str, failed: bool) -> "list[ray.ObjectRef[None]]":
        """Ends that row, and adds one whose name says how; returns what is done when the dashboard has it."""
        told = self.shown.outcome.options(name=f"{self.run}/{name} {outcome}").remote(name, outcome if failed else None)
        return [self.waiting.pop(name), told]
