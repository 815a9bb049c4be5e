"""Adds up the statistics of large files on all machines of a Ray cluster by Ray Data."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import partial, reduce
from operator import add
from typing import Any

import numpy as np
import ray.data
from pydantic import TypeAdapter

from raymtl.data.tables.fit_blocks import in_this_process
from raymtl.data.tables.source import Files
from raymtl.data.tables.statistics import Statistics
from raymtl.types import UserError

MOST_TASKS = 1024
"""Of more blocks, several are one task of Ray."""
_AS_JSON = TypeAdapter(Statistics)


def sum_on_ray(source: Files, numbers: Sequence[int]) -> Iterator[Statistics]:
    """Adds up blocks as tasks of Ray Data, spread over the machines. Ray must have been started.

    Raises UserError for what is wrong with the data.
    """
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.scheduling_strategy = "SPREAD"
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    sum_own: Any = partial(_sum, ray.put(source.model_dump_json()), list(numbers))
    places = ray.data.range(len(numbers), override_num_blocks=min(len(numbers), MOST_TASKS))
    for row in places.map_batches(sum_own, batch_size=None, num_cpus=1).iter_rows():
        if row["error"]:
            raise UserError(row["error"])
        yield _AS_JSON.validate_json(row["sums"])


def _sum(
    files: "ray.ObjectRef[str]", numbers: Sequence[int], batch: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The sums of the blocks at these places as JSON, or the sentence on a user's mistake."""
    sums = error = ""
    source = Files.model_validate_json(ray.get(files))
    try:
        of_blocks = in_this_process(source, [numbers[place] for place in batch["id"].tolist()])
        sums = _AS_JSON.dump_json(reduce(add, of_blocks)).decode()
    except UserError as mistake:
        error = str(mistake)
    return {"sums": np.array([sums], dtype=object), "error": np.array([error], dtype=object)}
