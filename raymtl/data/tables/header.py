"""Whether the first line of a text file names its columns."""

from collections.abc import Mapping, Sequence

import numpy as np

from raymtl.data.tables.findings import listed
from raymtl.storage.notes import Note


def header_note(file: str, cells: Mapping[str, Sequence[str]]) -> Note | None:
    """On a header that looks like a row of data, given the first cells below each name; None for
    one that does not.
    """
    alike = [name for name, column_cells in cells.items() if _could_be_cell(name, column_cells)]
    numbers = [name for name in alike if _number(name) is not None]
    if 2 * len(alike) <= len(cells) or _counted(numbers):
        return None
    text = (
        f"the header looks like a row of data: {listed(list(cells))}; name the columns of a file "
        "without a header"
    )
    return Note(place=file, text=text, key="data.columns")


def _could_be_cell(name: str, cells: Sequence[str]) -> bool:
    """Whether the name of a column is like its cells: a number among numbers, or one of its
    texts.
    """
    known = [cell.strip() for cell in cells if cell.strip()]
    if known and all(_number(cell) is not None for cell in known):
        return _number(name) is not None
    return name.strip() in known


def _counted(names: Sequence[str]) -> bool:
    """Whether names are whole numbers that go up by the same step, as those of columns without
    names do, or years.
    """
    numbers = [float(name) for name in names]
    steps = set(np.diff(numbers))
    return (
        len(steps) == 1 and bool(min(steps) > 0) and all(number.is_integer() for number in numbers)
    )


def _number(name: str) -> float | None:
    try:
        return float(name)
    except ValueError:
        return None
