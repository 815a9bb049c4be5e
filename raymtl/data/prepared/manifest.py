"""What a folder of prepared data says of itself."""

import hashlib
from typing import Literal

from pydantic import NonNegativeInt, PositiveInt

from raymtl.data.tables.source import Files
from raymtl.types import Spec

VERSION: Literal[1] = 1
"""Of the form of prepared data; another one is refused."""
MANIFEST = "manifest.json"
"""Written when everything else is complete."""
PLAN = "plan.json"
"""Written before the first shard: what the shards in the folder are made of."""
INDEX = "index.parquet"
"""A row for each row of the data: split, group, class and labels, everything but inputs and maps.
"""
ROWS = "rows"
"""A folder with the rows of a Dataset of Ray Data, if it was such that was prepared."""


class ShardEntry(Spec):
    """A file of encoded rows, and the pictures and maps in it that are not as they should be."""

    name: str
    rows: PositiveInt
    num_bytes: PositiveInt
    sha256: str
    unreadable: tuple[str, ...] = ()
    missing_maps: tuple[str, ...] = ()
    beyond: tuple[str, ...] = ()
    faded: tuple[str, ...] = ()


class IndexEntry(Spec):
    """The file of the index."""

    num_bytes: PositiveInt
    sha256: str


class Plan(Spec):
    """What the shards in a folder are made of."""

    version: NonNegativeInt = VERSION
    digest: str
    """Of the configuration, the findings and the blocks of rows."""
    fingerprint: str
    """Of the names, sizes and times of the user's files."""


class Manifest(Spec):
    """What prepared data are, and which files hold them."""

    version: Literal[1] = 1
    digest: str
    files: Files
    """The data as they were configured, with all findings."""
    rows: PositiveInt
    rows_per_group: PositiveInt
    """Rows of a row group of Parquet; the last one of a shard may have fewer."""
    shards: tuple[ShardEntry, ...]
    index: IndexEntry
    checksum: str = ""
    """The SHA-256 of all of this."""

    def content_checksum(self) -> str:
        """The SHA-256 of everything else that is written here."""
        content = self.model_dump_json(exclude={"checksum"})
        return hashlib.sha256(content.encode()).hexdigest()

    @property
    def num_bytes(self) -> int:
        """The size of all shards."""
        return sum(shard.num_bytes for shard in self.shards)
