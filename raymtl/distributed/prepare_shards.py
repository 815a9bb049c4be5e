"""Prepares the user's data on all machines of a Ray cluster, as one job of Ray Data."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import ray.data

from raymtl.data.prepared.encode_shard import prepare_shard
from raymtl.data.prepared.manifest import ShardEntry
from raymtl.data.prepared.plan import Job, ShardPlan
from raymtl.types import UserError

MOST_TASKS = 4096
"""Of more shards, several are one task of Ray."""


def on_ray(job: Job, shards: Sequence[ShardPlan]) -> Iterator[ShardEntry]:
    """Makes each shard as a task of Ray Data, spread over the machines. Ray must have been started.

    Raises UserError for what is wrong with the data.
    """
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    numbers = ray.data.range(len(shards), override_num_blocks=min(len(shards), MOST_TASKS))
    make: Any = partial(_make, job, ray.put(list(shards)))
    made = numbers.map_batches(make, batch_size=1, num_cpus=1, scheduling_strategy="SPREAD")
    for row in made.iter_rows():
        if row["error"]:
            raise UserError(row["error"])
        yield ShardEntry.model_validate_json(row["entry"])


def _make(
    job: Job, shards: "ray.ObjectRef[list[ShardPlan]]", batch: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The entry of the shard with this number, as JSON, or the sentence on a user's mistake."""
    entry = error = ""
    shard = ray.get(shards)[int(batch["id"][0])]
    try:
        entry = prepare_shard(job, shard).model_dump_json()
    except UserError as mistake:
        error = str(mistake)
    return {"entry": np.array([entry], dtype=object), "error": np.array([error], dtype=object)}
