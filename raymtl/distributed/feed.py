"""Where a Train worker gets its episodes from: it builds them itself, or builders do."""

import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import ray
import ray.train
import ray.train.collective
import torch
from ray.data import DataIterator

from raymtl.config import Experiment
from raymtl.data.base import Arrays
from raymtl.data.meters import BUILDER_CPU
from raymtl.distributed import waiting
from raymtl.distributed.builders import Parts, built_parts
from raymtl.distributed.share_builder import ShareBuilder
from raymtl.distributed.streaming import BuildEpisodes, StepEpisodes, UnpackEpisodes, streamed
from raymtl.step.workers import Workers


class FeedSettings(NamedTuple):
    """What a worker builds episodes from, and where it writes who builds them."""

    experiment: Experiment
    arrays: Arrays
    arrays_ref: Any
    """The same in Ray's object store, for builders."""
    folder: Path


class Feed:
    """Gives this worker (step, share, episodes) from any step on. All workers call it together."""

    def __init__(
        self,
        settings: FeedSettings,
        builders: int | Literal["auto"],
        workers: Workers,
        device: torch.device,
    ) -> None:
        self.settings, self.builders = settings, builders
        self.workers, self.device = workers, device

    def __call__(self, first_step: int) -> Iterator[StepEpisodes]:
        if self.builders == "auto":
            return self._built_here_first(first_step)
        if self.builders:
            return self._built_elsewhere(first_step, self._useful(self.builders, first_step))
        return self._built_here(first_step)

    def _built_here(self, first_step: int) -> Generator[StepEpisodes, None, None]:
        settings = self.settings
        BUILDER_CPU.sources = 0
        builder = ShareBuilder(settings.experiment, settings.arrays, self.workers.size)
        return streamed(ray.train.get_dataset_shard("ids"), BuildEpisodes(builder, first_step))

    def _built_elsewhere(self, first_step: int, num_builders: int) -> Iterator[StepEpisodes]:
        settings = self.settings
        num_pools = 1
        if self._lanes is not None:
            num_pools = num_builders
        stop = settings.experiment.train.steps
        parts = Parts(first_step, stop, self.workers.size, num_pools)
        made: list[DataIterator] | None = None
        if self.workers.rank == 0:
            made = built_parts(settings.experiment, settings.arrays_ref, parts, num_builders)
        # The first worker holds the stream, so that it ends with this group of workers.
        iterators: Any = ray.train.collective.broadcast_from_rank_zero(made)
        BUILDER_CPU.sources = num_builders
        unpack = UnpackEpisodes(parts.each_share)
        return streamed(iterators[self.workers.rank], unpack, parts.each_share)

    @property
    def _lanes(self) -> int | None:
        """The lanes of files that are streamed; None where none are."""
        data = self.settings.experiment.data
        if data.is_streamed:
            return data.lanes
        return None

    def _useful(self, num_builders: int, step: int) -> int:
        """The builders of a number that was asked for that do not read what others read."""
        lanes, num_workers = self._lanes, self.workers.size
        if lanes is None:
            return num_builders
        possible = waiting.shared_by(num_workers, lanes)
        useful = max(number for number in possible if number <= num_builders)
        if useful < num_builders and self.workers.rank == 0:
            note = waiting.explain_fewer(num_builders, useful, num_workers, lanes)
            waiting.save(self.settings.folder, note, useful, step)
        return useful

    def _built_here_first(self, first_step: int) -> Iterator[StepEpisodes]:
        """Built by the worker, until all workers see that they wait too long and that there are
        CPUs for builders.
        """
        clock = waiting.WaitClock(self.workers, self.device)
        batches = self._built_here(first_step)
        stop = self.settings.experiment.train.steps
        next_step = first_step
        while next_step < stop:
            asked = time.perf_counter()
            batch = next(batches)
            if next_step == first_step:
                clock.restart()  # the start is no sign of what comes
            else:
                clock.waited_s += time.perf_counter() - asked
            yield batch
            next_step = batch[0] + 1
            if next_step % waiting.LOOK_STEPS == 0 and next_step + waiting.LOOK_STEPS <= stop:
                builders = self._builders_wanted(clock, next_step)
                if builders:
                    batches.close()
                    yield from self._built_elsewhere(next_step, builders)
                    return

    def _builders_wanted(self, clock: waiting.WaitClock, step: int) -> int:
        """How many builders to take from this step on; 0 to go on without. The same on all
        workers.
        """
        waited = clock.look()
        if waited.seconds < waiting.LOOK_S:
            return 0
        clock.restart()
        if waited.share <= waiting.MOST_WAIT:
            return 0
        num_free = 0
        if self.workers.rank == 0:
            num_free = int(ray.available_resources().get("CPU", 0))
        num_free = int(self.workers.sum(torch.tensor(num_free, device=self.device)))
        num_workers = self.workers.size
        builders = waiting.num_builders(waited, num_workers, num_free, self._lanes)
        if self.workers.rank == 0:
            note = waiting.explain(waited, builders, num_workers, num_free, self._lanes)
            waiting.save(self.settings.folder, note, builders, step)
        return builders
