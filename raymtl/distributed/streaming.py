"""Ray Data around the sampler: ids come in a stream, episodes are built beside the training step."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from ray.data import DataIterator
from ray.data.collate_fn import NumpyBatchCollateFn

from raymtl.data.base import Arrays, Source
from raymtl.data.episodes import build_episodes
from raymtl.types import MetaBatch

PREFETCH = 4  # steps


class BuildEpisodes(NumpyBatchCollateFn):
    """Turns the ids of one step into this worker's share of its episodes, from arrays in shared
    memory.

    Returns (step, share, episodes). Steps before `first_step`, which a resumed run has behind it,
    are passed over: their episodes are None.
    """

    def __init__(
        self,
        source: Source,
        arrays: Arrays,
        seed: int,
        meta_batch: int,
        num_workers: int,
        first_step: int,
    ) -> None:
        self.source, self.arrays, self.seed = source, arrays, seed
        self.meta_batch, self.num_workers, self.first_step = meta_batch, num_workers, first_step

    def __call__(self, batch: dict[str, np.ndarray]) -> Any:
        step, share = int(batch["step"][0]), int(batch["share"][0])
        if step < self.first_step:
            return step, share, None
        start, stop = (self.meta_batch * rank // self.num_workers for rank in (share, share + 1))
        episodes, _ = build_episodes(
            self.source,
            self.arrays,
            seed=self.seed,
            split="train",
            step=step,
            indices=range(start, stop),
        )
        return step, share, episodes


class BuildParts(NumpyBatchCollateFn):
    """The same for a training in several parts: first step of a part -> what builds its episodes,
    in that order.
    """

    def __init__(self, builds: Mapping[int, BuildEpisodes]) -> None:
        self.builds = builds

    def __call__(self, batch: dict[str, np.ndarray]) -> Any:
        start = max(first for first in self.builds if first <= batch["step"][0])
        return self.builds[start](batch)


def streamed(
    shard: DataIterator, build: NumpyBatchCollateFn
) -> Iterator[tuple[int, int, MetaBatch]]:
    """(step, share, episodes) from the first step on, prefetched in the background."""
    batches: Any = shard.iter_torch_batches(
        batch_size=1, prefetch_batches=PREFETCH, collate_fn=build, device="cpu", pin_memory=False
    )
    for step, share, episodes in batches:
        if episodes is not None:
            yield step, share, episodes
