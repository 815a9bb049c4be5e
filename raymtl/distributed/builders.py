"""Builders: processes of Ray Data, on any machine, that build the episodes of the Train workers.

    ids (step, part) -> pools of actors `BuildParts` -> the parts of a worker's share, each step

Each block holds one part, and Ray Data keeps their order and assigns them to the workers in turn.
So each worker gets all parts of one share of every step, whichever builder made them.

Of data in memory a part is a whole share, and one pool makes all of them. Where files are streamed
each pool is one builder, which builds the episodes of its own lanes alone: together the builders
read each block once.

This module does not import torch, because the processes of Ray Data that make ids and assign parts
do not need it.
"""

import math
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy, DataIterator, ExecutionOptions
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from raymtl.types import UserError

if TYPE_CHECKING:
    from raymtl.config import Experiment
    from raymtl.distributed.carried import Carried


CPUS = 1.0
"""What a builder takes."""

ACCELERATOR_LABEL = "ray.io/accelerator-type"
"""The label that Ray gives to machines with GPUs."""

TASKS_A_STEP = 16
"""The parts of a step are built in at most so many tasks, since each costs Ray Data some
milliseconds; in one of each pool at least.
"""


class Parts(NamedTuple):
    """The parts of shares that builders are to make.

    A part is a share, or what a pool makes of it: one of the numbers of workers and of pools
    divides the other.
    """

    first_step: int
    stop: int
    num_workers: int
    num_pools: int = 1

    @property
    def each_step(self) -> int:
        """How many parts a step has."""
        return max(self.num_workers, self.num_pools)

    @property
    def each_share(self) -> int:
        """How many parts a worker gets at each step."""
        return self.each_step // self.num_workers

    def ids(self, pool: int) -> Iterator[tuple[int, int]]:
        """(step, part) of a pool.

        Ray Data takes one part of each pool in turn, and gives one to each worker in turn. In this
        order a worker gets consecutive parts, and a pool makes consecutive parts of a step.
        """
        groups = min(self.num_workers, self.num_pools)
        for step in range(self.first_step, self.stop):
            for place in range(pool, self.each_step, self.num_pools):
                yield step, place % groups * (self.each_step // groups) + place // groups


class PartIds(Datasource):
    """Ids of the parts of a pool, made while they are asked for: there can be millions."""

    def __init__(self, parts: Parts, pool: int) -> None:
        self.parts, self.pool = parts, pool

    def estimate_inmemory_data_size(self) -> int | None:
        """Unknown, and small."""
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """One task, so that the ids have one order."""
        parts, pool = self.parts, self.pool

        def read() -> Iterator[pa.Table]:
            for step, part in parts.ids(pool):
                yield pa.table({"step": [step], "part": [part]})

        num_rows = (parts.stop - parts.first_step) * parts.each_step // parts.num_pools
        about = BlockMetadata(num_rows=num_rows, size_bytes=None, input_files=None, exec_stats=None)
        return [ReadTask(read, about)]


class BuildParts:
    """A builder: makes packed parts from their ids and from the arrays in the object store.

    A row says what was spent since the row before: the bytes that were read of streamed files, and
    the seconds of processor time. It names files that were left out, each once. Where the data are
    at fault it has the sentence on that instead of episodes.
    """

    def __init__(
        self, experiment: "Carried", arrays: "ray.ObjectRef[Any]", parts_each_step: int
    ) -> None:
        from raymtl.data.left_out import LEFT_OUT
        from raymtl.data.meters import READ
        from raymtl.data.packed import pack_episodes
        from raymtl.data.tables.shuffle_buffer import read_carefully
        from raymtl.distributed.share_builder import ShareBuilder

        if ray.get_runtime_context().was_current_actor_reconstructed:
            read_carefully()
        self.pack, self.read, self.left_out = pack_episodes, READ, LEFT_OUT
        self.told: set[str] = set()
        self.builder = ShareBuilder(experiment.unpack(), ray.get(arrays), parts_each_step)
        self.spent_cpu_s = time.process_time()

    def __call__(self, ids: pa.Table) -> pa.Table:
        rows = [
            self._built(step, part)
            for step, part in zip(ids["step"].to_pylist(), ids["part"].to_pylist(), strict=True)
        ]
        return pa.Table.from_pylist(rows, BUILT)

    def _built(self, step: int, part: int) -> dict[str, Any]:
        packed: bytes | memoryview = b""
        fault = ""
        try:
            packed = self.pack(self.builder.build(step, part)).data
        except UserError as error:
            fault = f"{error} (A builder on {socket.gethostname()} says so.)"
        except OSError as error:
            fault = (
                f"data.path: expected files that every machine of the cluster reaches, got "
                f"'{error}' on {socket.gethostname()}. Mount the storage there, or set "
                "data.builders: 0."
            )
        left_out = self.left_out.taken() - self.told
        self.told |= left_out
        before, self.spent_cpu_s = self.spent_cpu_s, time.process_time()
        return {
            "step": step,
            "part": part,
            "episodes": packed,
            "fault": fault,
            "read_bytes": self.read.taken(),
            "cpu_s": self.spent_cpu_s - before,
            "left_out": sorted(left_out),
        }


BUILT = pa.schema(
    {
        "step": pa.int64(),
        "part": pa.int64(),
        "episodes": pa.large_binary(),
        "fault": pa.string(),
        "read_bytes": pa.float64(),
        "cpu_s": pa.float64(),
        "left_out": pa.list_(pa.string()),
    }
)
"""What a builder makes of each id."""


def labels_without_gpus(nodes: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """A selector of labels for machines without GPUs; empty where no machine has GPUs, or one of
    those has no label that says so.
    """
    with_gpus = [node for node in nodes if node["Alive"] and node["Resources"].get("GPU", 0)]
    kinds = {(node.get("Labels") or {}).get(ACCELERATOR_LABEL) for node in with_gpus}
    if not kinds or None in kinds:
        return {}
    return {ACCELERATOR_LABEL: f"!in({','.join(sorted(map(str, kinds)))})"}


def built_parts(
    experiment: "Experiment", arrays: "ray.ObjectRef[Any]", parts: Parts, num_builders: int
) -> list[DataIterator]:
    """For each worker the stream of the packed parts of its shares, which builders begin to make
    when all workers ask for them. Each pool has as many of the builders.
    """
    pools = [
        _pool(experiment, arrays, parts, pool, num_builders // parts.num_pools)
        for pool in range(parts.num_pools)
    ]
    dataset = pools[0]
    if len(pools) > 1:
        dataset = dataset.union(*pools[1:])  # in the settings of the first
    iterators: list[DataIterator] = dataset.streaming_split(parts.num_workers, equal=True)
    return iterators


def _pool(
    experiment: "Experiment", arrays: "ray.ObjectRef[Any]", parts: Parts, pool: int, size: int
) -> ray.data.Dataset:
    """The parts that some builders make."""
    from raymtl.distributed.carried import carry

    without_gpus = labels_without_gpus(ray.nodes())
    in_a_task = math.ceil(parts.each_step / TASKS_A_STEP)
    dataset: ray.data.Dataset = ray.data.read_datasource(
        PartIds(parts, pool), num_cpus=0
    ).map_batches(
        BuildParts,
        fn_constructor_args=(carry(experiment), arrays, parts.each_step),
        batch_size=min(in_a_task, parts.each_step // parts.num_pools),
        batch_format="pyarrow",
        zero_copy_batch=True,
        compute=ActorPoolStrategy(size=size),
        num_cpus=CPUS,
        label_selector=without_gpus or None,
        fallback_strategy=[{"label_selector": {}}] if without_gpus else None,  # any machine
    )
    context = dataset.context
    context.enable_progress_bars = False
    context.target_max_block_size = 1  # bytes: every row is a block of its own
    context.execution_options = ExecutionOptions(preserve_order=True)
    return dataset
