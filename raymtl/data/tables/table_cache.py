"""What stays in memory of files, since looking at data reads a file several times."""

from collections.abc import Callable, Hashable
from threading import Lock
from typing import Generic, TypeVar

import pyarrow as pa

from raymtl.data.tables.paths import FileSet, file_key

MOST_MB = 64
"""The size of all tables together."""
MOST_FILES = 4096
"""Of which something is kept."""
Kept = TypeVar("Kept")


class RecentTables:
    """The tables that were read last, out of files that have not changed since."""

    def __init__(self) -> None:
        self.tables: dict[Hashable, pa.Table] = {}
        self.lock = Lock()

    def get(self, key: Hashable) -> pa.Table | None:
        return self.tables.get(key)

    def add(self, key: Hashable, table: pa.Table) -> pa.Table:
        """The same table; the oldest ones are given up where there is no room for it."""
        with self.lock:
            self.tables[key] = table
            while self.tables and sum(one.nbytes for one in self.tables.values()) > MOST_MB * 1e6:
                del self.tables[next(iter(self.tables))]
        return table


class KeptByFile(Generic[Kept]):
    """What was read of files, as long as these do not change."""

    def __init__(self, read: Callable[[FileSet, str], Kept], most_files: int = MOST_FILES) -> None:
        self._read = read
        self._most_files = most_files
        self._kept: dict[Hashable, Kept] = {}
        self._lock = Lock()

    def of(self, file_set: FileSet, file: str) -> Kept:
        """What `read` returns of the file."""
        key = file_key(file_set, file)
        with self._lock:
            if key in self._kept:
                return self._kept[key]
        found = self._read(file_set, file)
        with self._lock:
            while len(self._kept) >= self._most_files:
                del self._kept[next(iter(self._kept))]
            self._kept[key] = found
        return found
