"""Prepared data in memory; or the index alone, if the data do not fit."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raymtl.data.prepared.encode_shard import INDEX_COLUMNS
from raymtl.data.prepared.index import row_keys, splits_of
from raymtl.data.prepared.manifest import INDEX, MANIFEST, Manifest, ShardEntry
from raymtl.data.shards.reader import shard_arrays
from raymtl.data.shards.records import LABELS, arrays_in, read_layout
from raymtl.data.shards.store import Store
from raymtl.data.tables.contents import arrow_stream
from raymtl.data.tables.encode import Encoded
from raymtl.data.tables.load import Loaded, assemble, notes_of_blocks
from raymtl.data.tables.load_notes import unlabelled_notes
from raymtl.data.tables.pools import make_pools
from raymtl.data.tables.source import Files
from raymtl.storage.notes import ARRAY, pack
from raymtl.types import UserError

KEY = "data.path"
THREADS = 4
"""Shards that are read at a time."""


def read_manifest(path: str) -> Manifest:
    """The manifest of a folder or a URL. Raises UserError if there are no prepared data, or data
    of another version.
    """
    store = Store(path, KEY)
    try:
        content = store.read(MANIFEST)
    except OSError:
        raise UserError(
            f"{KEY}: expected a folder or a URL of prepared data, got {path}, which has no "
            f"{MANIFEST}. Give `raymtl data prepare CONFIG --output {path}` (again, if it was "
            "interrupted)."
        ) from None
    try:
        manifest = Manifest.model_validate_json(content)
        if manifest.checksum != manifest.content_checksum():
            raise ValueError("another checksum")
        return manifest
    except (ValueError, UserError):
        raise UserError(
            f"{KEY}: expected prepared data of this version of raymtl, got {path}/{MANIFEST} of "
            "another one, or a damaged one. Give `raymtl data prepare` again with a new folder."
        ) from None


def load_prepared(
    source: Files, manifest: Manifest, path: str, cache_mb: float | None
) -> dict[str, np.ndarray]:
    """The arrays that episodes are drawn from, with the splits, pools and notes of `Files.load`.

    With `cache_mb` the rows stay in the shards, and a process keeps row groups of that size in
    memory. Raises UserError for a shard that is missing or damaged.
    """
    store = Store(path, KEY)
    _check_sizes(store, manifest)
    if cache_mb is None:
        return _in_memory(source, store, manifest)
    shards = {shard.name: shard.rows for shard in manifest.shards}
    of_shards = shard_arrays(path, manifest.checksum, shards, manifest.rows_per_group, cache_mb)
    return _by_index(source, store, manifest) | of_shards


def _check_sizes(store: Store, manifest: Manifest) -> None:
    """Raises UserError for files that are missing or not as long as they were written."""
    expected = {shard.name: shard.num_bytes for shard in manifest.shards}
    expected[INDEX] = manifest.index.num_bytes
    sizes = store.sizes()
    for name, size in expected.items():
        if name not in sizes:
            raise store.error(name, "where there is none")
        if sizes[name] != size:
            state = f"which is damaged ({sizes[name]} bytes instead of {size})"
            raise store.error(name, state)


def _in_memory(source: Files, store: Store, manifest: Manifest) -> dict[str, np.ndarray]:
    with ThreadPoolExecutor(THREADS) as threads:
        tables = list(threads.map(lambda shard: _whole(store, shard), manifest.shards))
    names = ["inputs", *_label_arrays(source)]
    blocks = [
        _encoded(shard, table, names) for shard, table in zip(manifest.shards, tables, strict=True)
    ]
    columns = pa.concat_tables([table.select([*INDEX_COLUMNS]) for table in tables])
    keys = row_keys(source, columns)
    blocks[0] = blocks[0]._replace(group_keys=keys.group_keys)
    return assemble(source, Loaded(blocks, splits_of(source, keys), manifest.rows), streamed=False)


def _label_arrays(source: Files) -> list[str]:
    """The names of the arrays of labels."""
    return [f"{kind}/{name}" for name in source.tasks for kind in ("target", "mask")]


def _whole(store: Store, shard: ShardEntry) -> pa.Table:
    """All of a shard. Raises UserError if its content is not what was written."""
    return store.read_shard(shard.name, lambda file: _table(file, shard.sha256))


def _table(file: pa.NativeFile, sha256: str) -> pa.Table:
    """All of a file of Parquet. Raises ValueError if it has another checksum."""
    content = file.read()
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError("another checksum")
    stream = arrow_stream(content)
    del content  # which is as large as the stream
    return pq.read_table(stream, use_threads=False)


def _encoded(shard: ShardEntry, table: pa.Table, names: Sequence[str]) -> Encoded:
    """The rows of a shard as they were encoded, without their groups."""
    arrays = arrays_in(table, read_layout(table.schema), names)
    return Encoded(
        {name: arrays[name] for name in names},
        table["given"].to_numpy(),
        table["hash"].to_numpy(),
        None,
        shard.unreadable,
        shard.missing_maps,
        shard.beyond,
        shard.faded,
    )


def _by_index(source: Files, store: Store, manifest: Manifest) -> dict[str, np.ndarray]:
    """The splits and pools of rows that stay in the shards, and their small labels."""

    index = store.read_shard(INDEX, lambda file: _table(file, manifest.index.sha256))
    layout = {LABELS: read_layout(index.schema)[LABELS]}
    labels = set(layout[LABELS].names or ())
    arrays = arrays_in(index, layout, [name for name in _label_arrays(source) if name in labels])
    keys = row_keys(source, index)
    splits = splits_of(source, keys)
    notes = notes_of_blocks(source, manifest.shards, manifest.rows)
    pools, pool_notes = make_pools(source, arrays, splits, keys.group_keys)
    notes += [*pool_notes, *unlabelled_notes(source, arrays, splits)]
    names = list(source.tasks)
    counts = [int(arrays[f"mask/{name}"][splits == 0].sum()) for name in names]
    if all(arrays[f"mask/{name}"].all() for name in names):
        arrays["complete"] = np.array(True)
    return (
        arrays
        | pools
        | {
            "side": splits,
            "tasks": np.array(names),
            "sizes": np.array(counts),
            ARRAY: pack(notes),
        }
    )
