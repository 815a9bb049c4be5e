"""Builders: processes of Ray Data, on any machine, that build the episodes of the Train workers.

    ids (step, share) -> actor pool of `BuildShares` -> one share a worker and step

Each block holds one share, and Ray Data keeps their order and assigns them to the workers in turn.
So worker r gets share r of every step, whichever builder made it.

This module does not import torch, because the processes of Ray Data that make ids and assign shares
do not need it.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy, DataIterator, ExecutionOptions
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

if TYPE_CHECKING:
    from raymtl.config import Experiment
    from raymtl.distributed.carried import Carried


CPUS = 1.0
"""What a builder takes."""

ACCELERATOR_LABEL = "ray.io/accelerator-type"
"""The label that Ray gives to machines with GPUs."""

TASKS_A_STEP = 16
"""The shares of a step are built in at most so many tasks, since each costs Ray Data some
milliseconds.
"""


class Shares(NamedTuple):
    """The shares that builders are to make."""

    first_step: int
    stop: int
    num_workers: int

    def ids(self) -> Iterator[tuple[int, int]]:
        """(step, share), in the order in which Ray Data assigns them to the workers."""
        for step in range(self.first_step, self.stop):
            for share in range(self.num_workers):
                yield step, share


class ShareIds(Datasource):
    """Ids of shares, made while they are asked for: there can be millions."""

    def __init__(self, shares: Shares) -> None:
        self.shares = shares

    def estimate_inmemory_data_size(self) -> int | None:
        """Unknown, and small."""
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """One task, so that the ids have one order."""
        shares = self.shares

        def read() -> Iterator[pa.Table]:
            for step, share in shares.ids():
                yield pa.table({"step": [step], "share": [share]})

        num_rows = (shares.stop - shares.first_step) * shares.num_workers
        about = BlockMetadata(num_rows=num_rows, size_bytes=None, input_files=None, exec_stats=None)
        return [ReadTask(read, about)]


class BuildShares:
    """A builder: makes packed shares from their ids and from the arrays in the object store."""

    def __init__(
        self, experiment: "Carried", arrays: "ray.ObjectRef[Any]", num_workers: int
    ) -> None:
        from raymtl.data.packed import pack_episodes
        from raymtl.distributed.share_builder import ShareBuilder

        self.pack = pack_episodes
        self.builder = ShareBuilder(experiment.unpack(), ray.get(arrays), num_workers)

    def __call__(self, ids: pa.Table) -> pa.Table:
        steps, shares = ids["step"].to_pylist(), ids["share"].to_pylist()
        packed = [
            self.pack(self.builder.build(step, share)).data
            for step, share in zip(steps, shares, strict=True)
        ]
        return ids.append_column("episodes", pa.array(packed, pa.large_binary()))


def labels_without_gpus(nodes: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """A selector of labels for machines without GPUs; empty where no machine has GPUs, or one of
    those has no label that says so.
    """
    with_gpus = [node for node in nodes if node["Alive"] and node["Resources"].get("GPU", 0)]
    kinds = {(node.get("Labels") or {}).get(ACCELERATOR_LABEL) for node in with_gpus}
    if not kinds or None in kinds:
        return {}
    return {ACCELERATOR_LABEL: f"!in({','.join(sorted(map(str, kinds)))})"}


def built_shares(
    experiment: "Experiment", arrays: "ray.ObjectRef[Any]", shares: Shares, num_builders: int
) -> list[DataIterator]:
    """For each worker the stream of its packed shares, which builders begin to make when all
    workers ask for them.
    """
    from raymtl.distributed.carried import carry

    without_gpus = labels_without_gpus(ray.nodes())
    dataset = ray.data.read_datasource(ShareIds(shares), num_cpus=0).map_batches(
        BuildShares,
        fn_constructor_args=(carry(experiment), arrays, shares.num_workers),
        batch_size=math.ceil(shares.num_workers / TASKS_A_STEP),
        batch_format="pyarrow",
        zero_copy_batch=True,
        compute=ActorPoolStrategy(size=num_builders),
        num_cpus=CPUS,
        label_selector=without_gpus or None,
        fallback_strategy=[{"label_selector": {}}] if without_gpus else None,  # any machine
    )
    context = dataset.context
    context.enable_progress_bars = False
    context.target_max_block_size = 1  # bytes: every row is a block of its own
    context.execution_options = ExecutionOptions(preserve_order=True)
    iterators: list[DataIterator] = dataset.streaming_split(shares.num_workers, equal=True)
    return iterators
