"""Features of rows: read from a cache, and what it lacks computed and kept, block by block."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from raymtl.features.cache import FeatureCache
from raymtl.features.network import FrozenNetwork
from raymtl.features.rows import DifferentRows
from raymtl.storage.notes import Note

BLOCK = 1024
"""Rows that are computed, and kept, at a time."""
BLOCK_BYTES = 1 << 26
PLACE = "features"
KEY = "encoder.cache"

Report = Callable[[int, int], None]
"""Called with the number of rows that are computed, and that of all that are to be."""
LoadNetwork = Callable[[], FrozenNetwork]
Driver = Callable[[LoadNetwork, Sequence[np.ndarray]], Iterator[tuple[int, np.ndarray]]]
"""Computes blocks of pictures: the number of each with its features, in any order."""


def in_this_process(
    load: LoadNetwork, blocks: Sequence[np.ndarray]
) -> Iterator[tuple[int, np.ndarray]]:
    """The driver that starts nothing."""
    network = load()
    for number, rows in enumerate(blocks):
        yield number, network.of_rows(rows)


class Computed(NamedTuple):
    """The features of rows [N, F] float32, and what is said of them."""

    features: np.ndarray
    notes: tuple[Note, ...]


class FeatureJob(NamedTuple):
    """The features of some rows by one network."""

    rows: DifferentRows
    about: Mapping[str, object]
    """What they are the features of."""
    cache: FeatureCache
    load: LoadNetwork
    driver: Driver
    report: Report

    def run(self) -> Computed:
        """Raises UserError for weights that cannot be read."""
        number = len(self.rows.digests)
        out = np.empty((number, self.cache.num_features), np.float32)
        read = self.cache.read(self.rows.digests, out)
        notes = []
        if read.damaged:
            text = f"{', '.join(read.damaged)} cannot be read; what it held was computed anew"
            notes.append(Note(place=str(self.cache.folder), text=text, key=KEY))
        missing = np.flatnonzero(~read.is_known)
        if missing.size:
            text = self._compute(missing, out)
        else:
            text = f"read from {self.cache.folder}"
        network = self.about["network"]
        text = f"those of {number:,} different pictures by the frozen {network} were {text}"
        return Computed(out, (*notes, Note(place=PLACE, text=text, key=KEY)))

    def _compute(self, missing: np.ndarray, out: np.ndarray) -> str:
        """Writes the features of missing rows into `out`; what was done, in words."""
        started = time.monotonic()
        blocks = self._blocks(missing)
        done, refusal = 0, ""
        for number, features in self.driver(self.load, blocks):
            own = blocks.places[number]
            out[own] = features
            done += len(own)
            self.report(done, len(missing))
            if not refusal:
                refusal = self._keep(own, features)
        took = f"computed in {time.monotonic() - started:,.0f} s"
        if done < len(out):
            took = f"computed, {done:,} of them now in {time.monotonic() - started:,.0f} s"
        if refusal:
            return f"{took} and not kept, since {self.cache.folder} cannot be written ({refusal})"
        return f"{took} and kept in {self.cache.folder}"

    def _blocks(self, missing: np.ndarray) -> "Blocks":
        row_bytes = self.rows.picture(int(missing[0])).nbytes
        size = max(1, min(BLOCK, BLOCK_BYTES // row_bytes))
        return Blocks(self.rows, np.split(missing, range(size, len(missing), size)))

    def _keep(self, own: np.ndarray, features: np.ndarray) -> str:
        """Why a block could not be kept; nothing if it was."""
        try:
            self.cache.describe(self.about)
            self.cache.add([self.rows.digests[number] for number in own.tolist()], features)
        except OSError as error:
            return error.strerror or str(error)
        return ""


class Blocks(Sequence[np.ndarray]):
    """The pictures of each block, which are gathered when they are asked for."""

    def __init__(self, rows: DifferentRows, places: Sequence[np.ndarray]) -> None:
        self.rows, self.places = rows, places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, number: int) -> np.ndarray:  # type: ignore[override]
        if number >= len(self.places):
            raise IndexError(number)
        return np.stack([self.rows.picture(row) for row in self.places[number].tolist()])
