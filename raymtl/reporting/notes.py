"""Notes as commands print them: what was decided for the user, and the key that changes it."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console

if TYPE_CHECKING:
    from raymtl.storage.notes import Note

MOST_LINES = 8
"""Of the notes that are printed before a training."""


def print_notes(console: Console, notes: "Sequence[Note]", rest: str | None = None) -> None:
    """Prints one line a note: all of them, or only the first where `rest` says what has the rest.

    The last line then says how many more there are, and `rest`.
    """
    lines = [f"note: {note}" for note in notes]
    if rest is not None and len(lines) > MOST_LINES:
        more = len(lines) - MOST_LINES + 1
        lines = [*lines[: MOST_LINES - 1], f"{more} more notes: {rest}"]
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def notes_of(content: Mapping[str, Any]) -> "list[Note]":
    """The `notes` of a JSON file or of what a command wrote."""
    from raymtl.storage.notes import Note

    return [Note(**note) for note in content["notes"]]
