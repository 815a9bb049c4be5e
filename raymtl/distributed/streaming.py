"""The episodes of a Train worker, prefetched in the background of the training step.

A worker either builds them from ids that Ray Data streams, or gets them from builders.
"""

from collections.abc import Generator
from typing import Any

import numpy as np
import pyarrow as pa
from ray.data import DataIterator
from ray.data.collate_fn import ArrowBatchCollateFn, NumpyBatchCollateFn

from raymtl.data.episodes import join_shares
from raymtl.data.left_out import LEFT_OUT
from raymtl.data.meters import BUILDER_CPU, READ
from raymtl.data.packed import unpack_episodes
from raymtl.distributed.share_builder import ShareBuilder
from raymtl.types import Episode, MetaBatch, UserError

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
    """Makes tensors of the parts of a share that builders have packed.

    Returns (step, share, episodes), adds to the meters of this process what they cost, and takes
    over which files could not be read. Raises UserError where a builder found a fault of the data.

    The bytes are copied once, out of shared memory: that is read-only, and full sooner the longer
    a part stays in it.
    """

    def __init__(self, parts_each_share: int) -> None:
        self.parts_each_share = parts_each_share

    def __call__(self, batch: pa.Table) -> Any:
        for fault in batch["fault"].to_pylist():
            if fault:
                raise UserError(fault)
        READ.add(sum(batch["read_bytes"].to_pylist()))
        BUILDER_CPU.add(sum(batch["cpu_s"].to_pylist()))
        for names in batch["left_out"].to_pylist():
            LEFT_OUT.add(names)
        steps, parts = batch["step"].to_pylist(), batch["part"].to_pylist()
        share = parts[0] // self.parts_each_share
        expected = [share * self.parts_each_share + place for place in range(self.parts_each_share)]
        if len(set(steps)) > 1 or parts != expected:
            raise RuntimeError(
                f"expected the parts {expected} of one step in this order, got {parts} of steps "
                f"{steps}"
            )
        return steps[0], share, join_shares([_unpacked(part) for part in batch["episodes"]])


def _unpacked(part: pa.LargeBinaryScalar) -> tuple[Episode, ...]:
    return unpack_episodes(np.frombuffer(part.as_buffer(), np.uint8).copy())


def streamed(
    shard: DataIterator, collate: BuildEpisodes | UnpackEpisodes, rows_each_step: int = 1
) -> Generator[StepEpisodes, None, None]:
    """Yields (step, share, episodes) from the first step on, prefetched in the background."""
    batches: Any = shard.iter_torch_batches(
        batch_size=rows_each_step,
        prefetch_batches=PREFETCH,
        collate_fn=collate,
        device="cpu",
        pin_memory=False,
    )
    for step, share, episodes in batches:
        if episodes is not None:
            yield step, share, episodes
