"""Notes on the rows that were encoded: pictures that are damaged or cut off, and missing labels."""

from collections.abc import Sequence

import numpy as np

from raymtl.data.base import SPLITS, Arrays
from raymtl.data.tables.settings import FilesConfig
from raymtl.storage.notes import Note
from raymtl.types import UserError

NAMED = 5
"""The number of pictures or maps that a note names."""


def unreadable_notes(source: FilesConfig, unreadable: Sequence[str], number: int) -> list[Note]:
    """A note on the pictures, out of this number, that could not be read. Raises UserError where
    there are too many.
    """
    if not unreadable:
        return []
    text = f"{len(unreadable)} of {number} pictures cannot be read: {first_named(unreadable)}"
    if len(unreadable) > source.max_corrupt * number:
        raise UserError(
            f"data.max_corrupt: {text}, which is over {source.max_corrupt:.1%} of them. Restore "
            "them, or raise it."
        )
    return [Note(place="pictures", text=f"{text}; they are left out", key="data.max_corrupt")]


def first_named(names: Sequence[str]) -> str:
    """The first of these names, and how many more there are."""
    named = "; ".join(names[:NAMED])
    if len(names) > NAMED:
        named += f" and {len(names) - NAMED} more"
    return named


def unlabelled_notes(source: FilesConfig, arrays: Arrays, splits: np.ndarray) -> list[Note]:
    """Notes on the tasks that have no label in the rows of validation or test."""
    notes = []
    for name in source.tasks:
        for number, split in enumerate(SPLITS):
            if split == "train" or arrays[f"mask/{name}"][splits == number].any():
                continue
            text = f"no row of {split} has a label, so that it is trained, but has no score there"
            notes.append(Note(place=f"task '{name}'", text=text, key="data.split"))
    return notes


def missing_map_notes(missing: Sequence[str]) -> list[Note]:
    """A note on the maps that are named and missing; their rows have no label of the task."""
    if not missing:
        return []
    text = (
        f"{len(missing)} maps are not there: {first_named(missing)}; these rows have no label of it"
    )
    return [Note(place="maps", text=text)]


def faded_notes(source: FilesConfig, faded: Sequence[str]) -> list[Note]:
    """A note on the pictures that are in colour though those that were looked at are grey."""
    if not faded or source.channels is not None:
        return []
    text = (
        f"{len(faded)} are in colour and are seen as greys, since those that were looked at first "
        f"are grey: {first_named(faded)}"
    )
    return [Note(place="pictures", text=text, key="data.channels")]


def beyond_notes(source: FilesConfig, beyond: Sequence[str]) -> list[Note]:
    """A note on the pictures with values beyond black or white, which those for training do not
    have, or few of them.
    """
    shades = source.found.shades
    if not beyond or shades is None:
        return []
    ends = f"{shades.black:g} to {shades.white:g}"
    text = f"{len(beyond)} have values outside {ends}, which are cut off: {first_named(beyond)}"
    return [Note(place="pictures", text=text, key="data.value_range")]
