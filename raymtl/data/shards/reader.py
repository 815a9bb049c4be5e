"""Rows out of shards, wherever they are: read by row groups, with a cache of bounded size."""

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raymtl.data.base import Arrays
from raymtl.data.shards.records import Layout, arrays_in, columns_with, read_layout
from raymtl.data.shards.store import Store

KEY = "data.path"
THREADS = 8
"""Row groups that are read at a time."""
MOST_OPEN = 64
"""Shards whose description is in memory; it takes some kilobytes for each."""

Group = tuple[int, int]
"""The numbers of a shard and of a row group in it."""


class ShardReader:
    """Reads rows by their numbers. Threads may share it."""

    def __init__(self, arrays: Arrays) -> None:
        """Takes the places of the shards from the arrays of a source; see `shard_arrays`."""
        self.store = Store(str(arrays["shards/place"]), KEY)
        self.names: list[str] = arrays["shards/names"].tolist()
        self.starts = arrays["shards/starts"]
        self.rows_per_group = int(arrays["shards/rows_per_group"])
        self.cache_bytes = float(arrays["shards/cache_mb"]) * 1e6
        self._cache: OrderedDict[Group, Mapping[str, np.ndarray]] = OrderedDict()
        self._cached_bytes = 0
        self._metadata: OrderedDict[int, pq.FileMetaData] = OrderedDict()
        self._lock = threading.Lock()

    def gather(self, names: Sequence[str], rows: np.ndarray) -> dict[str, np.ndarray]:
        """The arrays with these names in these rows [...]. Raises UserError for a shard that is
        missing or damaged.
        """
        flat = rows.reshape(-1)
        shards = np.searchsorted(self.starts, flat, side="right") - 1
        inside = flat - self.starts[shards]
        groups, places = np.divmod(inside, self.rows_per_group)
        order = np.lexsort((groups, shards))
        edges = np.flatnonzero(np.diff(shards[order]) | np.diff(groups[order])) + 1
        gathered: dict[str, np.ndarray] = {}

        def fill(positions: np.ndarray) -> None:
            first = positions[0]
            values = self._group((int(shards[first]), int(groups[first])), names)
            with self._lock:
                for name in names:
                    if name not in gathered:
                        shape = (len(flat), *values[name].shape[1:])
                        gathered[name] = np.empty(shape, values[name].dtype)
            for name in names:
                gathered[name][positions] = values[name][places[positions]]

        runs = np.split(order, edges)
        if len(runs) == 1:
            fill(runs[0])
        else:
            with ThreadPoolExecutor(THREADS, thread_name_prefix="raymtl-shards") as threads:
                list(threads.map(fill, runs))
        return {
            name: values.reshape(*rows.shape, *values.shape[1:])
            for name, values in gathered.items()
        }

    def _group(self, group: Group, names: Sequence[str]) -> Mapping[str, np.ndarray]:
        """The arrays of a row group, out of the cache or read now."""
        with self._lock:
            cached = self._cache.get(group)
            if cached is not None and all(name in cached for name in names):
                self._cache.move_to_end(group)
                return cached
        values = self._read(group, names)
        with self._lock:
            replaced = self._cache.pop(group, {})
            self._cached_bytes += _num_bytes(values) - _num_bytes(replaced)
            self._cache[group] = values
            while self._cached_bytes > self.cache_bytes and self._cache:
                _, oldest = self._cache.popitem(last=False)
                self._cached_bytes -= _num_bytes(oldest)
        return values

    def _read(self, group: Group, names: Sequence[str]) -> dict[str, np.ndarray]:
        number, row_group = group

        def read(file: pa.NativeFile) -> dict[str, np.ndarray]:
            parquet = pq.ParquetFile(
                file,
                metadata=self._metadata_of(number, file),
                page_checksum_verification=True,
                memory_map=False,
            )
            layout: Layout = read_layout(parquet.schema_arrow)
            columns = columns_with(layout, names)
            table = parquet.read_row_group(row_group, columns=columns, use_threads=False)
            return arrays_in(table, layout, names)

        return self.store.read_shard(self.names[number], read)

    def _metadata_of(self, number: int, file: pa.NativeFile) -> pq.FileMetaData:
        with self._lock:
            known = self._metadata.get(number)
        if known is None:
            known = pq.read_metadata(file)
            with self._lock:
                self._metadata[number] = known
                while len(self._metadata) > MOST_OPEN:
                    self._metadata.popitem(last=False)
        return known


def _num_bytes(arrays: Mapping[str, np.ndarray]) -> int:
    return sum(values.nbytes for values in arrays.values())


def shard_arrays(
    place: str, checksum: str, shards: Mapping[str, int], rows_per_group: int, cache_mb: float
) -> dict[str, np.ndarray]:
    """Where rows are, as arrays that travel with the others of a source.

    `checksum` is of all that is there; `shards` maps the name of each shard to its number of rows.
    """
    return {
        "shards/place": np.array(place),
        "shards/checksum": np.array(checksum),
        "shards/names": np.array(list(shards)),
        "shards/starts": np.cumsum([0, *shards.values()]),
        "shards/rows_per_group": np.array(rows_per_group),
        "shards/cache_mb": np.array(cache_mb),
    }


READERS: dict[str, ShardReader] = {}
"""The readers of this process, by what they read: their caches stay between steps."""


def gather_rows(arrays: Arrays, names: Sequence[str], rows: np.ndarray) -> dict[str, np.ndarray]:
    """The arrays with these names in these rows [...] of the shards that `arrays` describe."""
    place, checksum, cache_mb = (arrays[f"shards/{of}"] for of in ("place", "checksum", "cache_mb"))
    key = f"{place} {checksum} {cache_mb}"
    reader = READERS.get(key)
    if reader is None:
        reader = READERS[key] = ShardReader(arrays)
    return reader.gather(names, rows)
