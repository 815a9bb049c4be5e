"""Notes which pictures of streamed files a training left out.

Each worker reads files of its own, so each writes a file of its own into the model folder.
"""

import math
import time
from collections.abc import Iterable
from pathlib import Path

from raymtl.data.base import Source
from raymtl.data.left_out import LEFT_OUT
from raymtl.data.sources.combined import Several
from raymtl.data.tables.load_notes import first_named
from raymtl.storage import formats
from raymtl.storage.fence import Attempt
from raymtl.storage.notes import Note

PREFIX = "left-out-"
WRITE_S = 10.0
"""Seconds between two writes, apart from those with the scores."""
MOST = 10_000
"""Names that a worker notes at most."""


class LeftOutRecord:
    """The names of the files that were left out of the episodes of one worker."""

    def __init__(self, attempt: Attempt, rank: int) -> None:
        self.attempt = attempt
        self.path = attempt.folder / f"{PREFIX}{rank}.json"
        self.names = set(_read(self.path))
        """Those that earlier attempts wrote, too."""
        self.num_written = len(self.names)
        self.written_at = -math.inf
        LEFT_OUT.taken()  # leaves out those of an earlier training in this process

    def look(self) -> None:
        """Called after every step. Raises Superseded."""
        new = sorted(LEFT_OUT.taken() - self.names)
        self.names.update(new[: MOST - len(self.names)])
        if time.monotonic() - self.written_at >= WRITE_S:
            self.flush()

    def flush(self) -> None:
        """Writes the file if there are new names. Raises Superseded."""
        if len(self.names) == self.num_written:
            return
        formats.write_json(self.path, {"names": sorted(self.names)}, self.attempt.publish)
        self.num_written, self.written_at = len(self.names), time.monotonic()


def _read(path: Path) -> list[str]:
    """The names in a file; none if it does not exist."""
    if not path.exists():
        return []
    names: list[str] = formats.read_json(path)["names"]
    return names


def note_of(folders: Iterable[Path], data: Source) -> Note | None:
    """The note on what trainings in these model folders left out; None for nothing."""
    names: set[str] = set()
    at_least = ""
    for folder in folders:
        for path in folder.glob(f"{PREFIX}*.json"):
            of_worker = _read(path)
            names.update(of_worker)
            if len(of_worker) == MOST:
                at_least = "at least "
    if not names:
        return None
    text = (
        f"{at_least}{len(names)} of those that were drawn from cannot be read: "
        f"{first_named(sorted(names))}; they are left out"
    )
    note = Note(place="streamed pictures", text=text, key="data.max_corrupt")
    if isinstance(data, Several):
        (part,) = [name for name, source in data.parts.items() if source.is_streamed]
        return note.of_part(part, f"data.parts.{part}")
    return note
