"""Builds episodes in the background of the training step, from ids that Ray Data streams."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from ray.data import DataIterator
from ray.data.collate_fn import NumpyBatchCollateFn

from raymtl.config import Experiment
from raymtl.data.base import Arrays
from raymtl.data.episodes import build_meta_batch
from raymtl.step.workers import Workers
from raymtl.types import MetaBatch

PREFETCH = 4  # steps


class BuildEpisodes(NumpyBatchCollateFn):
    """Builds this worker's shard of the episodes of one step from the step's ids and arrays in
    shared memory.

    Returns (step, share, episodes). Steps before `first_step`, which a resumed run has already
    made, get None instead of episodes.
    """

    def __init__(
        self,
        experiment: Experiment,
        arrays: Arrays,
        num_workers: int,
        first_step: int,
    ) -> None:
        self.experiment, self.arrays = experiment, arrays
        self.num_workers, self.first_step = num_workers, first_step

    def __call__(self, batch: dict[str, np.ndarray]) -> Any:
        step, share = int(batch["step"][0]), int(batch["share"][0])
        if step < self.first_step:
            return step, share, None
        worker = Workers(rank=share, size=self.num_workers)
        episodes = build_meta_batch(
            self.experiment.data,
            self.arrays,
            seed=self.experiment.seed,
            split="train",
            step=step,
            indices=worker.share(self.experiment.train.meta_batch),
        )
        return step, share, episodes


class BuildStages(NumpyBatchCollateFn):
    """Builds the episodes of a training in several stages.

    `builds` maps the first step of each stage to the builder of the stage's episodes.
    """

    def __init__(self, builds: Mapping[int, BuildEpisodes]) -> None:
        self.builds = builds

    def __call__(self, batch: dict[str, np.ndarray]) -> Any:
        start = max(first for first in self.builds if first <= batch["step"][0])
        return self.builds[start](batch)


def streamed(
    shard: DataIterator, build: NumpyBatchCollateFn
) -> Iterator[tuple[int, int, MetaBatch]]:
    """Yields (step, share, episodes) from the first step on, prefetched in the background."""
    batches: Any = shard.iter_torch_batches(
        batch_size=1, prefetch_batches=PREFETCH, collate_fn=build, device="cpu", pin_memory=False
    )
    for step, share, episodes in batches:
        if episodes is not None:
            yield step, share, episodes
