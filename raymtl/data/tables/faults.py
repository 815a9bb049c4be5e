"""Pictures and labels of new rows that are not as they should be."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from raymtl.data.tables.folders import named_first
from raymtl.storage.notes import Note
from raymtl.types import UserError


class Faults(NamedTuple):
    """The names of what is not as it should be."""

    pictures: tuple[str, ...] = ()
    """Those that cannot be read, whose rows are left out."""
    labels: tuple[str, ...] = ()
    """Those that cannot be read."""
    beyond: tuple[str, ...] = ()
    """Pictures with values outside the range of the run's own."""

    @classmethod
    def together(cls, parts: Iterable["Faults"]) -> "Faults":
        """Those of several blocks."""
        parts = list(parts)
        return cls(
            tuple(name for part in parts for name in part.pictures),
            tuple(name for part in parts for name in part.labels),
            tuple(name for part in parts for name in part.beyond),
        )

    def notes(self) -> list[Note]:
        """What a user is told of them."""
        notes = _notes_of_damaged("pictures", self.pictures)
        if self.beyond:
            text = (
                f"{len(self.beyond)} have values outside the range of the run's own, which are cut "
                f"off: {named_first(self.beyond)}"
            )
            notes.append(Note(place="pictures", text=text))
        return [*notes, *_notes_of_damaged("labels", self.labels)]


def check_readable(path: str, num_rows: int, faults: Faults) -> None:
    """Raises UserError where there are pictures, and none can be read."""
    if faults.pictures and not num_rows:
        raise UserError(
            f"{path}: expected pictures that can be read, got none: {faults.pictures[0]}. Restore "
            "them."
        )


def _notes_of_damaged(place: str, names: Sequence[str]) -> list[Note]:
    if not names:
        return []
    text = f"{len(names)} cannot be read, and are left out: {named_first(names)}"
    return [Note(place=place, text=text)]
