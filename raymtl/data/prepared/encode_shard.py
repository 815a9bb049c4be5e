"""One shard of prepared data: a pure function of its blocks of rows.

Every driver calls `prepare_shard`, in a loop or as tasks on many machines. A shard has the same
bytes wherever it is made.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from raymtl.data.prepared.manifest import ShardEntry
from raymtl.data.prepared.plan import Job, ShardPlan
from raymtl.data.shards.records import columns_of, layout_of, schema_metadata
from raymtl.data.shards.store import Store
from raymtl.data.tables.columns import texts
from raymtl.data.tables.dataset import TableDataset, TableRows
from raymtl.data.tables.encode import Encoded, encode_rows
from raymtl.data.tables.probe import DecoderProbe
from raymtl.data.tables.source import Files
from raymtl.types import UserError

OUTPUT = "--output"
INDEX_COLUMNS = ("given", "hash", "group", "class")
"""What a row's split follows from: the split that the files give, the hash of the row, its group
and its class.
"""


class PreparedBlock(NamedTuple):
    """The rows of a block, and the class of each where the only task has classes."""

    encoded: Encoded
    class_keys: pa.Array | None


def encode_block(source: Files, dataset: TableDataset, number: int) -> PreparedBlock:
    """The rows of a block. Their hashes and groups are those for episodes of rows or of groups;
    what episodes of classes need is in `class_keys`, so episodes can be chosen later.
    """
    rows = dataset.read(number)
    by_rows = source.model_copy(update={"episodes": "rows"})
    return PreparedBlock(
        encode_rows(by_rows, dataset, number, rows), _class_keys(source, dataset, rows)
    )


def _class_keys(source: Files, dataset: TableDataset, rows: TableRows) -> pa.Array | None:
    """The class of each row as text; None where no episodes of classes can be drawn."""
    if len(source.tasks) != 1:
        return None
    ((name, fitted),) = ((name, source.found.tasks[name]) for name in source.tasks)
    if not fitted.task_kind.has_class_targets or dataset.labels[name].in_files:
        return None
    return texts(next(iter(rows.labels[name].values())))


def shard_table(blocks: Sequence[PreparedBlock]) -> pa.Table:
    """The rows of these blocks as columns of a shard."""
    layout = layout_of(blocks[0].encoded.arrays)
    names = [*INDEX_COLUMNS, *layout]
    parts = []
    for block in blocks:
        encoded = block.encoded
        columns: dict[str, pa.Array] = {
            "given": pa.array(encoded.given, pa.int8()),
            "hash": pa.array(encoded.hashed, pa.uint64()),
            "group": _text(encoded.group_keys, len(encoded.given)),
            "class": _text(block.class_keys, len(encoded.given)),
            **columns_of(encoded.arrays, layout),
        }
        parts.append(pa.table([columns[name] for name in names], names))
    return pa.concat_tables(parts).replace_schema_metadata(schema_metadata(layout))


def _text(keys: pa.Array | None, number: int) -> pa.Array:
    if keys is None:
        return pa.nulls(number, pa.string())
    return keys


def parquet_of(table: pa.Table, rows_per_group: int) -> pa.Buffer:
    """The table as a Parquet file; equal tables become equal bytes."""
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        row_group_size=rows_per_group,
        compression="none",
        use_dictionary=["group", "class"],
        write_statistics=False,
        write_page_checksum=True,
    )
    return sink.getvalue()


def prepare_shard(job: Job, shard: ShardPlan) -> ShardEntry:
    """Writes a shard, unless it is there already with the right checksum. Raises UserError."""
    store = Store(job.output, OUTPUT)
    complete = complete_entry(store, shard)
    if complete is not None:
        return complete
    with _attempt(store, shard) as is_repeated:
        return _encode_shard(job, shard, store, is_repeated)


@contextmanager
def _attempt(store: Store, shard: ShardPlan) -> Iterator[bool]:
    """Marks the shard as begun; says whether a process has died that had begun it. A mistake, which
    is reported, leaves no mark.
    """
    mark = f".begun-{shard.number:06d}"
    is_repeated = store.holds(mark)
    if not is_repeated:
        store.publish(mark, b"")
    try:
        yield is_repeated
    finally:
        with suppress(OSError):  # another attempt can have removed it
            store.remove(mark)


def _encode_shard(job: Job, shard: ShardPlan, store: Store, is_repeated: bool) -> ShardEntry:
    """Encodes and writes a shard; every picture goes through a probe first if `is_repeated`."""
    source, dataset = _opened(job.files)
    probe = DecoderProbe()
    dataset.probe = None
    if is_repeated and source.is_image:
        dataset.probe = probe
    try:
        blocks = [
            encode_block(source, dataset, number)
            for number in range(shard.first_block, shard.end_block)
        ]
    finally:
        probe.close()
    table = shard_table(blocks)
    if len(table) != shard.rows:
        raise UserError(
            f"data.path: expected {shard.rows} rows in the blocks of {shard.name} as when they "
            f"were planned, got {len(table)}. Give the command again with an empty {OUTPUT}."
        )
    content = parquet_of(table, job.rows_per_group)
    store.publish(shard.name, content)
    entry = ShardEntry(
        name=shard.name,
        rows=shard.rows,
        num_bytes=content.size,
        sha256=_sha256(content),
        **_faults([block.encoded for block in blocks]),
    )
    store.publish(shard.entry_name, entry.model_dump_json().encode())
    return entry


def complete_entry(store: Store, shard: ShardPlan) -> ShardEntry | None:
    """What is known of a shard that is in the store; None if it is missing or damaged."""
    try:
        entry = ShardEntry.model_validate_json(store.read(shard.entry_name))
        if store.checksum(shard.name) == entry.sha256:
            return entry
    except (OSError, ValueError):
        return None
    return None


@lru_cache(maxsize=1)
def _opened(files: str) -> tuple[Files, TableDataset]:
    """The user's files, opened once in a process."""
    source = Files.model_validate_json(files)
    return source, TableDataset(source)


def _sha256(content: pa.Buffer) -> str:
    return hashlib.sha256(content).hexdigest()


def _faults(blocks: Sequence[Encoded]) -> dict[str, tuple[str, ...]]:
    """The names of pictures and maps that are not as they should be."""
    return {
        "unreadable": tuple(name for block in blocks for name in block.unreadable),
        "missing_maps": tuple(name for block in blocks for name in block.missing_maps),
        "beyond": tuple(name for block in blocks for name in block.beyond),
        "faded": tuple(name for block in blocks for name in block.faded),
    }
