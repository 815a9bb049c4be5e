"""Rows by their content: which are alike, and what they are called in a cache."""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

DIGEST_BYTES = 16


class DifferentRows(NamedTuple):
    """The rows of arrays that differ."""

    digests: list[bytes]
    """Of each of them."""
    arrays: Sequence[np.ndarray]
    places: list[tuple[int, int]]
    """The array and the row where each of them comes first."""
    numbers: list[np.ndarray]
    """Of each array [N]: which of them its rows are."""

    def picture(self, number: int) -> np.ndarray:
        """One of the different rows."""
        which, row = self.places[number]
        content: np.ndarray = self.arrays[which][row]
        return content


def find_different(arrays: Sequence[np.ndarray]) -> DifferentRows:
    """The different rows of arrays [N, ...], in the order in which they come first."""
    known: dict[bytes, int] = {}
    places: list[tuple[int, int]] = []
    numbers = []
    for which, rows in enumerate(arrays):
        own = np.empty(len(rows), np.int64)
        for row, content in enumerate(np.ascontiguousarray(rows)):
            digest = hashlib.blake2b(content, digest_size=DIGEST_BYTES).digest()
            number = known.setdefault(digest, len(known))
            if number == len(places):
                places.append((which, row))
            own[row] = number
        numbers.append(own)
    return DifferentRows(list(known), arrays, places, numbers)
