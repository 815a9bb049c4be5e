"""`train.task_axis: auto`: times the ways of running episodes on a few of them, before step one."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch.utils._pytree import tree_map

from raymtl.sharing import SharingArchitecture
from raymtl.step.algorithm import Algorithm
from raymtl.step.execution import TaskAxis, count_episodes, stacks
from raymtl.step.workers import Workers
from raymtl.types import Episode, MetaBatch, Params

CHUNKS = (8, 4, 2)
NUM_SAMPLED = 8
"""How many episodes of a stack a chunked vmap and the loop are timed on."""
SHARE = 0.02
"""The largest share of a training's time that the timings may take."""
CLEARLY_SLOWER = 2.0
"""A way whose first run takes so many times the best one's time is not timed again."""

NEARLY = 1.05
"""Of ways that take at most so many times the best one's time, the one of least memory is taken."""


class Way(NamedTuple):
    """How the episodes of a step are run."""

    task_axis: TaskAxis
    chunk: int | None = None
    """How many of them vmap takes at once; None for all."""

    def __str__(self) -> str:
        if self.chunk is None:
            return self.task_axis
        return f"{self.task_axis} {self.chunk}"

    @classmethod
    def parsed(cls, text: str) -> "Way | None":
        """The way that was written as `text`; None where it is none."""
        axis, _, chunk = text.partition(" ")
        if axis == "loop":
            return cls("loop")
        known: dict[str, TaskAxis] = {"vmap": "vmap", "rows": "rows"}
        if axis in known and chunk.isdigit():
            return cls(known[axis], int(chunk))
        if axis in known and not chunk:
            return cls(known[axis])
        return None


def way_of_rows(algorithm: Algorithm, chunk: int | None) -> Way | None:
    """All rows together, where no episode has a say in what is computed of them; else None."""
    has_terms = type(algorithm.model).auxiliary is not SharingArchitecture.auxiliary
    if algorithm.learner.reads_support or has_terms:
        return None
    return Way("rows", chunk)


Run = Callable[[Way, MetaBatch], float]
"""Runs a step on these episodes in this way; returns the seconds that it took."""


def likely_way(params: Params, chunk: int | None) -> Way:
    """The way that is taken without any timing: where a CPU has to convolve, it is the loop."""
    convolves = any(value.ndim == 4 for value in params.values())
    if convolves and next(iter(params.values())).device.type == "cpu":
        return Way("loop")
    return Way("vmap", chunk)


class WayTimer:
    """Finds the fastest way, the same on all workers, by the sums of their times.

    Every way is run on as few episodes as it takes to tell, and once only where it is clearly
    slower than the best. The timings end where they would take more than SHARE of the training's
    `steps`.
    """

    def __init__(self, run: Run, episodes: MetaBatch, workers: Workers, steps: int) -> None:
        self.run, self.workers, self.steps = run, workers, steps
        self.stacks = stacks(episodes)
        totals = self._summed(0.0, count_episodes(self.stacks))
        self.num_episodes = totals[1] / workers.size
        self.spent = 0.0
        self.seconds: dict[Way, float] = {}
        """The seconds of an episode in each way that was timed."""

    def fastest(self, likely: Way, chunk: int | None) -> Way:
        """The fastest of the loop, vmap, and chunks where the user has not chosen `chunk`."""
        ways = [Way("vmap", chunk)]
        if chunk is None:
            ways += [Way("vmap", each) for each in CHUNKS if each < self.num_episodes]
        ways = [likely, *(way for way in [Way("loop"), *ways] if way != likely)]
        for way in ways:
            if not self._affords(way):
                continue
            self._time(way)
        if not self.seconds:
            return likely
        best = min(self.seconds.values())
        near = [way for way, seconds in self.seconds.items() if seconds <= NEARLY * best]
        return min(near, key=_episodes_at_once)

    def _affords(self, way: Way) -> bool:
        """Whether two runs of the way are within the share, if it is as fast as the best one."""
        if not self.seconds:
            runs = 2 * self._num_sampled(way) / self.num_episodes
            return runs <= SHARE * self.steps
        best = min(self.seconds.values())
        cost = self.spent + 2 * best * self._num_sampled(way)
        return cost <= SHARE * self.steps * best * self.num_episodes

    def _num_sampled(self, way: Way) -> float:
        if way == Way("vmap"):
            return self.num_episodes
        return min(max(NUM_SAMPLED, way.chunk or 1), self.num_episodes)

    def _time(self, way: Way) -> None:
        if way == Way("vmap"):
            first = last = self.stacks
        else:
            first = [_first_rows(stack, way.chunk or 1) for stack in self.stacks]
            last = [_first_rows(stack, int(self._num_sampled(way))) for stack in self.stacks]
        # The first run pays for warming up, but not several times what a run takes.
        seconds = self._seconds_an_episode(way, first)
        if self.seconds and seconds > CLEARLY_SLOWER * min(self.seconds.values()):
            return
        self.seconds[way] = self._seconds_an_episode(way, last)

    def _seconds_an_episode(self, way: Way, episodes: Sequence[Episode]) -> float:
        seconds, number = self._summed(self.run(way, episodes), count_episodes(episodes))
        self.spent += seconds / self.workers.size
        return seconds / number

    def _summed(self, seconds: float, number: int) -> list[float]:
        device = next(iter(self.stacks[0].query.targets.values())).device
        summed: list[float] = self.workers.sum(
            torch.tensor([seconds, number], dtype=torch.float64, device=device)
        ).tolist()
        return summed


def _episodes_at_once(way: Way) -> float:
    """How many episodes' graphs are in memory together."""
    if way.task_axis == "loop":
        return 1
    return way.chunk or math.inf


def _first_rows(stack: Episode, number: int) -> Episode:
    rows: Episode = tree_map(lambda leaf: leaf[:number], stack)
    return rows
