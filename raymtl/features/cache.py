"""Features of rows in files: Parquet shards, each with the digests of its rows.

A shard's name is the digest of its content, so that writers who compute the same rows write the
same file, and others none that is in the way. Shards are only added; what cannot be read is
computed again.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raymtl.features.rows import DIGEST_BYTES
from raymtl.storage import atomic, formats

DIGEST, FEATURES = "row", "features"
ABOUT = "network.json"


class Read(NamedTuple):
    """What a cache has of some rows."""

    is_known: np.ndarray
    """[N]"""
    damaged: Sequence[str]
    """The names of shards that could not be read."""


class FeatureCache:
    """The features of one network, [F] for each row."""

    def __init__(self, folder: Path, num_features: int) -> None:
        self.folder, self.num_features = folder, num_features

    def describe(self, about: Mapping[str, object]) -> None:
        """Writes what the features are of, for people."""
        if not (self.folder / ABOUT).exists():
            formats.write_json(self.folder / ABOUT, about)

    def read(self, digests: Sequence[bytes], out: np.ndarray) -> Read:
        """Writes the features of the rows that are known into `out` [N, F]."""
        numbers = {digest: number for number, digest in enumerate(digests)}
        is_known = np.zeros(len(digests), bool)
        damaged = []
        for path in sorted(self.folder.glob("*.parquet")):
            try:
                places, features = self._read_shard(path, numbers)
            except (pa.ArrowException, OSError, KeyError, ValueError):
                damaged.append(path.name)
                continue
            out[places] = features
            is_known[places] = True
        return Read(is_known, damaged)

    def _read_shard(
        self, path: Path, numbers: Mapping[bytes, int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """The places of the shard's rows that are asked for, and their features."""
        with (
            pa.OSFile(str(path)) as file,
            pq.ParquetFile(file, page_checksum_verification=True) as shard,
        ):
            digests = shard.read([DIGEST])[DIGEST].to_pylist()
            wanted = [row for row, digest in enumerate(digests) if digest in numbers]
            places = np.array([numbers[digests[row]] for row in wanted], np.int64)
            if not wanted:
                return places, np.zeros((0, self.num_features), np.float32)
            column = shard.read([FEATURES])[FEATURES].combine_chunks()
        features = column.flatten().to_numpy().reshape(len(digests), self.num_features)
        return places, features[wanted]

    def add(self, digests: Sequence[bytes], features: np.ndarray) -> None:
        """Publishes the features of some rows as a shard. Raises OSError where it cannot."""
        values = pa.array(np.ascontiguousarray(features, np.float32).reshape(-1))
        table = pa.table(
            {
                DIGEST: pa.array(list(digests), pa.binary(DIGEST_BYTES)),
                FEATURES: pa.FixedSizeListArray.from_arrays(values, self.num_features),
            }
        )
        name = hashlib.blake2b(b"".join(digests), digest_size=DIGEST_BYTES).hexdigest()

        def write(aside: Path) -> None:
            # Digests and features hardly get smaller.
            pq.write_table(
                table, aside, compression="none", use_dictionary=False, write_page_checksum=True
            )

        atomic.publish(self.folder / f"{name}.parquet", write)
