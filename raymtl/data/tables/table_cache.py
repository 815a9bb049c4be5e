"""Tables of text files that stay in memory, since looking at data reads a file several times."""

from collections.abc import Hashable
from threading import Lock

import pyarrow as pa

MOST_MB = 64
"""The size of all tables together."""


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
