"""The index of prepared data: the split, group, class and small labels of every row."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raymtl.data.prepared.encode_shard import INDEX_COLUMNS
from raymtl.data.prepared.manifest import ShardEntry
from raymtl.data.shards.records import LABELS
from raymtl.data.shards.store import Store
from raymtl.data.tables.settings import FilesConfig
from raymtl.data.tables.split_rows import assign_splits, splits_in
from raymtl.data.tables.splits import hashes


class RowKeys(NamedTuple):
    """What the splits of rows [N] follow from."""

    given: np.ndarray
    hashed: np.ndarray
    group_keys: pa.Array | None


def row_keys(source: FilesConfig, columns: pa.Table) -> RowKeys:
    """The keys of the rows for the episodes of a source."""
    given = columns["given"].to_numpy()
    if source.episodes == "classes" and source.group is None:
        keys = columns["class"].combine_chunks()
        hashed = hashes([("", pa.chunked_array([keys], pa.string()))], source.split.seed)
        return RowKeys(given, hashed, _one_array(columns["class"]))
    group_keys = None
    if source.group is not None:
        group_keys = _one_array(columns["group"])
    return RowKeys(given, columns["hash"].to_numpy(), group_keys)


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    return pa.concat_arrays(column.chunks)


def splits_of(source: FilesConfig, keys: RowKeys) -> np.ndarray:
    """The split of every row [N], as from the files themselves."""
    return assign_splits(
        source,
        keys.given,
        keys.hashed,
        splits_in(keys.given),
        each_by_itself=source.found.pool is not None,
    )


def index_of(source: FilesConfig, store: Store, shards: Sequence[ShardEntry]) -> pa.Buffer:
    """The index of these shards as a Parquet file with a row group for each of them."""
    keys = pa.concat_tables([_read(store, shard, [*INDEX_COLUMNS]) for shard in shards])
    splits = pa.array(splits_of(source, row_keys(source, keys)), pa.int8())
    sink = pa.BufferOutputStream()
    writer: pq.ParquetWriter | None = None
    start = 0
    for shard in shards:
        table = _read(store, shard, [*INDEX_COLUMNS, LABELS])
        table = table.append_column("split", splits.slice(start, shard.rows))
        start += shard.rows
        if writer is None:
            writer = pq.ParquetWriter(
                sink, table.schema, compression="zstd", write_page_checksum=True
            )
        writer.write_table(table, row_group_size=max(1, shard.rows))
    assert writer is not None
    writer.close()
    return sink.getvalue()


def _read(store: Store, shard: ShardEntry, columns: list[str]) -> pa.Table:
    def read(file: pa.NativeFile) -> pa.Table:
        return pq.read_table(file, columns=columns, page_checksum_verification=True)

    return store.read_shard(shard.name, read)
