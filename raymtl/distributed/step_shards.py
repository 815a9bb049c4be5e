"""The ids that Ray Data deals out: which share of which step. Ray alone reads this where no torch
is needed.
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
    """Deals out the ids of `steps` steps, in as many shares as there are workers.

    Each group of workers that Ray starts has a size of its own, so they are dealt anew for each;
    what the trainer was given as the dataset gives them its name alone.
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
        """Name -> the shares of a worker, by rank."""
        dealt = {name: id_dataset(self.steps, world_size) for name in datasets}
        iterators: list[dict[str, DataIterator]] = super().configure(
            dealt, world_size, worker_handles, worker_node_ids, **kwargs
        )
        return iterators


def id_dataset(steps: int, num_workers: int) -> ray.data.Dataset:
    """One row (step, share) for each worker's share of each step.

    Rows come in blocks of one share; Ray Data deals blocks out in turn, so that at every step the
    workers hold all the shares between them. Which worker holds which does not matter.
    """
    DataContext.get_current().enable_progress_bars = False
    # Made where the workers hold every CPU already: `from_arrow` would wait for one to look at the
    # tables with.
    dataset: ray.data.Dataset = ray.data.from_blocks(id_blocks(steps, num_workers))
    return dataset


def id_blocks(steps: int, num_workers: int) -> list[pa.Table]:
    """The blocks in their order: those of all shares for some steps, then for the next ones."""
    steps_a_block = max(STEPS_A_BLOCK, math.ceil(steps * num_workers / MOST_BLOCKS))
    blocks = []
    for start in range(0, steps, steps_a_block):
        step = np.arange(start, min(start + steps_a_block, steps))
        blocks += [
            pa.table({"step": step, "share": np.full_like(step, share)})
            for share in range(num_workers)
        ]
    return blocks
