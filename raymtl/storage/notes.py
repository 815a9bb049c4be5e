"""Notes: what the program decided for its user, about which column, row or file, and the key that
changes it.
"""

import re
from collections.abc import Iterable

import numpy as np

from raymtl.types import Spec

ARRAY = "notes"
"""The key of the notes among the arrays that a source loads."""


class Note(Spec):
    """One decision, for example `column 'zip': left out, since almost all values differ
    (data.inputs)`.
    """

    place: str
    """What it is about: a column, a task, a file, a row of a file."""
    text: str
    """What was decided, and why: one sentence without a full stop."""
    key: str | None = None
    """The dotted key that changes it."""

    def __str__(self) -> str:
        if self.key:
            key = f" ({self.key})"
        else:
            key = ""
        return f"{self.place}: {self.text}{key}"

    def of_part(self, part: str, places: str) -> "Note":
        """The same note of a part of what was read, whose keys stand below `places` instead of
        `data`.
        """

        def below(text: str) -> str:
            return re.sub(r"\bdata\.", f"{places}.", text)

        if self.key:
            key = below(self.key)
        else:
            key = None
        return Note(place=f"{part}: {self.place}", text=below(self.text), key=key)


def pack(notes: Iterable[Note]) -> np.ndarray:
    """The notes as an array of JSON texts, which travels with the other arrays of a source."""
    return np.array([note.model_dump_json() for note in notes], dtype=np.str_)


def unpack(packed: np.ndarray) -> tuple[Note, ...]:
    """The notes of an array that `pack` made."""
    return tuple(Note.model_validate_json(text) for text in packed.tolist())
