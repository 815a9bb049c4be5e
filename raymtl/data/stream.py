"""Ray Data around the sampler: ids are streamed and sharded, episodes are built beside the training step."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
from ray.data import DataContext, DataIterator, ExecutionOptions
from ray.data.collate_fn import NumpyBatchCollateFn
from ray.train import DataConfig

from raymtl.data.base import Arrays, Source
from raymtl.data.episodes import build_episodes
from raymtl.types import MetaBatch

STEPS_A_BLOCK = 64  # at least
MOST_BLOCKS = 4096  # Ray keeps each as an object of its own, made before training starts
PREFETCH = 4  # steps


def id_dataset(steps: int, num_workers: int) -> ray.data.Dataset:
    """One row (step, share) for each worker's share of each step.

    Rows come in blocks of one share; Ray Data deals blocks out in turn, so that at every step the workers hold all
    the shares between them. Which worker holds which does not matter.
    """
    DataContext.get_current().enable_progress_bars = False
    return ray.data.from_arrow(id_blocks(steps, num_workers))


def id_blocks(steps: int, num_workers: int) -> list[pa.Table]:
    """The blocks in their order: those of all shares for some steps, then for the next ones."""
    steps_a_block = max(STEPS_A_BLOCK, math.ceil(steps * num_workers / MOST_BLOCKS))
    blocks = []
    for start in range(0, steps, steps_a_block):
        step = np.arange(start, min(start + steps_a_block, steps))
        blocks += [pa.table({"step": step, "share": np.full_like(step, share)}) for share in range(num_workers)]
    return blocks


def data_config() -> DataConfig:
    """Keeps the order of the blocks, on which the assignment of shares rests."""
    return DataConfig(execution_options=ExecutionOptions(preserve_order=True))


class BuildEpisodes(NumpyBatchCollateFn):
    """Turns the ids of one step into this worker's share of its episodes, from arrays in shared memory.

    Returns (step, share, episodes). Steps before `first_step`, which a resumed run has behind it, are passed over:
    their episodes are None.
    """

    def __init__(
        self, source: Source, arrays: Arrays, seed: int, meta_batch: int, num_workers: int, first_step: int
    ) -> None:
        self.source, self.arrays, self.seed = source, arrays, seed
        self.meta_batch, self.num_workers, self.first_step = meta_batch, num_workers, first_step

    def __call__(self, batch: dict[str, np.ndarray]) -> Any:
        step, share = int(batch["step"][0]), int(batch["share"][0])
        if step < self.first_step:
            return step, share, None
        start, stop = (self.meta_batch * rank // self.num_workers for rank in (share, share + 1))
        episodes, _ = build_episodes(
            self.source, self.arrays, seed=self.seed, split="train", step=step, indices=range(start, stop)
        )
        return step, share, episodes


class BuildParts(NumpyBatchCollateFn):
    """The same for a training in several parts: first step of a part -> what builds its episodes, in that order."""

    def __init__(self, builds: Mapping[int, BuildEpisodes]) -> None:
        self.builds = builds

    def __call__(self, batch: dict[str, np.ndarray]) -> Any:
        start = max(first for first in self.builds if first <= batch["step"][0])
        return self.builds[start](batch)


def streamed(shard: DataIterator, build: NumpyBatchCollateFn) -> Iterator[tuple[int, int, MetaBatch]]:
    """(step, share, episodes) from the first step on, prefetched in the background."""
    batches: Any = shard.iter_torch_batches(
        batch_size=1, prefetch_batches=PREFETCH, collate_fn=build, device="cpu", pin_memory=False
    )
    for step, share, episodes in batches:
        if episodes is not None:
            yield step, share, episodes
