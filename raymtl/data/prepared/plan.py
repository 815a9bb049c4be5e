"""Which blocks of rows become which shard. It depends on the data and on the size of shards alone,
so the shards are equal on any number of machines.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from raymtl.data.prepared.manifest import VERSION, Plan
from raymtl.data.tables.blocks import Block
from raymtl.data.tables.dataset import TableDataset
from raymtl.data.tables.fit_stream import encoded_bytes
from raymtl.data.tables.source import Files

GROUP_BYTES = 1 << 18
"""Bytes of a row group: small, since a random row costs reading its row group."""
MOST_ROWS = 4096
"""Rows of a row group at most."""


class ShardPlan(NamedTuple):
    """The blocks of a shard, and their rows."""

    number: int
    first_block: int
    end_block: int
    rows: int

    @property
    def name(self) -> str:
        """Of its file."""
        return f"shard-{self.number:06d}.parquet"

    @property
    def entry_name(self) -> str:
        """Of the file that says that the shard is complete."""
        return f"shard-{self.number:06d}.json"


class Job(NamedTuple):
    """All that a process has to know to make a shard."""

    files: str
    """The configuration with its findings, as JSON."""
    output: str
    digest: str
    rows_per_group: int


class Planned(NamedTuple):
    """The job, its shards, and what the folder says of both before they are there."""

    job: Job
    shards: Sequence[ShardPlan]
    plan: Plan


def make_plan(source: Files, output: str, shard_mb: float) -> Planned:
    """Shards of about `shard_mb` of encoded rows; a block is never in two."""
    dataset = TableDataset(source)
    row_bytes = encoded_bytes(source, dataset, source.input_shape)
    blocks = [block for _, block in dataset.blocks]
    shards = list(_shards(blocks, max(1, int(shard_mb * 1e6) // row_bytes)))
    rows_per_group = min(MOST_ROWS, max(1, GROUP_BYTES // row_bytes))
    files = source.model_dump_json()
    content = {
        "version": VERSION,
        "settings": source.digest(),
        "tasks": {name: task.model_dump(mode="json") for name, task in source.tasks.items()},
        "fitted": source.found.model_dump(mode="json"),
        "blocks": blocks,
        "shards": shards,
        "rows_per_group": rows_per_group,
    }
    digest = _sha256(content)
    plan = Plan(digest=digest, fingerprint=fingerprint(dataset))
    return Planned(Job(files, output, digest, rows_per_group), shards, plan)


def _shards(blocks: Sequence[Block], most_rows: int) -> Iterator[ShardPlan]:
    number, first, rows = 0, 0, 0
    for place, block in enumerate(blocks):
        own = block.rows or 0
        if rows and rows + own > most_rows:
            yield ShardPlan(number, first, place, rows)
            number, first, rows = number + 1, place, 0
        rows += own
    yield ShardPlan(number, first, len(blocks), rows)


def fingerprint(dataset: TableDataset) -> str:
    """Of the names, sizes and times of the user's files."""
    return _sha256(list(_files(dataset)))


def _files(dataset: TableDataset) -> Iterator[tuple[str, int, str]]:
    """The user's files with their sizes and times."""
    for file_set in dataset.file_sets():
        for info in file_set.fs.get_file_info(list(file_set.files)):
            yield info.path, info.size or 0, str(info.mtime)


def _sha256(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
