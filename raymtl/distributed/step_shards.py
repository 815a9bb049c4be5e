"""The dataset that Ray Data streams to the workers: ids of shards, one row (step, share) each.

A worker computes the episodes of a shard from its id, so no episode is sent. This module does not
import torch, because the processes of Ray Data that import it do not need it.
"""

import math
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
from ray.data import DataContext, DataIterator, ExecutionOptions
from ray.train import DataConfig

STEPS_A_BLOCK = 64  # at least
MOST_BLOCKS = 4096  # Ray keeps each as an object of its own, made before training starts


class StepShards(DataConfig):
    """Gives each worker of a group one shard of each of the `steps` steps.

    Ray may start groups of different sizes (`train.min_workers`), so the ids are computed anew for
    each group. Of the datasets that the trainer was given, only the names are used.
    """

    def __init__(self, steps: int) -> None:
        # The assignment of shares rests on the order of the blocks.
        super().__init__(execution_options=ExecutionOptions(preserve_order=True))
        self.steps = steps

    def configure(
        self,
        datasets: dict[str, ray.data.Dataset],
        world_size: int,
        worker_handles: Any,
        worker_node_ids: Any,
        **kwargs: Any,
    ) -> list[dict[str, DataIterator]]:
        """For each worker, by rank: the iterator over its shards, by the name of the dataset."""
        dealt = {name: id_dataset(self.steps, world_size) for name in datasets}
        iterators: list[dict[str, DataIterator]] = super().configure(
            dealt, world_size, worker_handles, worker_node_ids, **kwargs
        )
        return iterators


def id_dataset(steps: int, num_workers: int) -> ray.data.Dataset:
    """A dataset with one row (step, share) for each shard of each step.

    All rows of a block have the same share. Ray Data assigns blocks to workers in turn, so at every
    step the workers together hold all shards. Which worker holds which shard does not matter.
    """
    DataContext.get_current().enable_progress_bars = False
    # Made where the workers hold every CPU already: `from_arrow` would wait for one to look at the
    # tables with.
    dataset: ray.data.Dataset = ray.data.from_blocks(id_blocks(steps, num_workers))
    return dataset


def id_blocks(steps: int, num_workers: int) -> list[pa.Table]:
    """The blocks in order: all shards of the first steps, then all shards of the next steps."""
    steps_a_block = max(STEPS_A_BLOCK, math.ceil(steps * num_workers / MOST_BLOCKS))
    blocks = []
    for start in range(0, steps, steps_a_block):
        step = np.arange(start, min(start + steps_a_block, steps))
        blocks += [
            pa.table({"step": step, "share": np.full_like(step, share)})
            for share in range(num_workers)
        ]
    return blocks
