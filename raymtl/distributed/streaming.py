"""The episodes of a Train worker, prefetched in the background of the training step.

A worker either builds them from ids that Ray Data streams, or gets them from builders.
"""

from collections.abc import Generator
from typing import Any

import numpy as np
import pyarrow as pa
from ray.data import DataIterator
from ray.data.collate_fn import ArrowBatchCollateFn, NumpyBatchCollateFn

from raymtl.data.packed import unpack_episodes
from raymtl.distributed.share_builder import ShareBuilder
from raymtl.types import MetaBatch

PREFETCH = 4  # steps

StepEpisodes = tuple[int, int, MetaBatch]
"""Step, share, and the episodes of the share."""


class BuildEpisodes(NumpyBatchCollateFn):
    """Builds this worker's share of the episodes of one step from the step's ids and arrays in
    shared memory.

    Returns (step, share, episodes). Steps before `first_step`, which a resumed run has already
    made, get None instead of episodes.
    """

    def __init__(self, builder: ShareBuilder, first_step: int) -> None:
        self.builder, self.first_step = builder, first_step

    def __call__(self, batch: dict[str, np.ndarray]) -> Any:
        step, share = int(batch["step"][0]), int(batch["share"][0])
        if step < self.first_step:
            return step, share, None
        return step, share, self.builder.build(step, share)


class UnpackEpisodes(ArrowBatchCollateFn):
    """Makes tensors of a share that a builder has packed. Returns (step, share, episodes).

    The bytes are copied once, out of shared memory: that is read-only, and full sooner the longer
    a share stays in it.
    """

    def __call__(self, batch: pa.Table) -> Any:
        row = batch.slice(0, 1).combine_chunks()
        packed = row["episodes"].chunk(0)[0].as_buffer()
        episodes = unpack_episodes(np.frombuffer(packed, np.uint8).copy())
        return row["step"][0].as_py(), row["share"][0].as_py(), episodes


def streamed(
    shard: DataIterator, collate: BuildEpisodes | UnpackEpisodes
) -> Generator[StepEpisodes, None, None]:
    """Yields (step, share, episodes) from the first step on, prefetched in the background."""
    batches: Any = shard.iter_torch_batches(
        batch_size=1, prefetch_batches=PREFETCH, collate_fn=collate, device="cpu", pin_memory=False
    )
    for step, share, episodes in batches:
        if episodes is not None:
            yield step, share, episodes
