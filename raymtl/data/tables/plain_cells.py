"""Cells of many columns of a text file at once, where all of them are plain numbers.

What `cells.plainly` does column by column, for the columns that leave no doubt: those whose cells
are all missing or written as `-12` or as `1.5e-3` are. A table of ten thousand columns takes a
second so, and not twenty.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

CELLS = 2_000_000
"""That are looked at together."""
KEPT_MB = 64
"""Of columns whose numbers are kept, since looking at data reads them several times."""
WHOLE = r"^-?(?:0|[1-9]\d{0,17})$"
NUMBER = r"^-?(?:(?:0|[1-9]\d{0,17})(?:[eE][+-]?\d+)?|(?:0|[1-9]\d*)\.\d+(?:[eE][+-]?\d+)?)$"
DAYS = 18000101, 21991231
"""Whole numbers that may be dates."""


class PlainCells(NamedTuple):
    """The numbers of those of some columns that are plain, by their places, and the row of their
    first cell.
    """

    numbers: dict[int, pa.Array]
    first: dict[int, int]


class _Kept(NamedTuple):
    columns: Sequence[pa.ChunkedArray]
    """Held, so that no other column can lie where these do."""
    key: object
    plain: PlainCells


_kept: list[_Kept] = []


def plain_cells(columns: Sequence[pa.ChunkedArray], missing: pa.Array) -> PlainCells:
    """The columns of texts, all of one length, that are whole or real numbers; `missing` stand for
    nothing.
    """
    key = (
        tuple(missing.to_pylist()),
        tuple(_place(chunk) for column in columns for chunk in column.chunks),
    )
    kept = next((one for one in _kept if one.key == key), None)
    if kept is not None:
        return kept.plain
    plain = PlainCells({}, {})
    if columns:
        rows = len(columns[0])
    else:
        rows = 0
    if rows:
        likely = _likely(columns, missing)
    else:
        likely = []
    size = max(1, CELLS // max(1, rows))
    for start in range(0, len(likely), size):
        _look(columns, likely[start : start + size], missing, plain)
    if sum(column.nbytes for column in columns) < KEPT_MB * 1e6:
        _kept[:] = [_Kept(columns, key, plain)]
    return plain


def _place(chunk: pa.Array) -> tuple[int, int, int]:
    """Where the texts of a chunk lie in memory."""
    offsets = chunk.buffers()[1]
    return (offsets.address if offsets is not None else 0, chunk.offset, len(chunk))


def _likely(columns: Sequence[pa.ChunkedArray], missing: pa.Array) -> list[int]:
    """The places of columns whose first cell could be a number."""
    usable = [place for place, column in enumerate(columns) if pa.types.is_string(column.type)]
    if not usable:
        return []
    first = pc.utf8_trim_whitespace(pa.concat_arrays([_first(columns[place]) for place in usable]))
    likely = pc.or_kleene(
        pc.match_substring_regex(first, NUMBER), pc.is_in(first, value_set=missing)
    )
    return [
        place
        for place, good in zip(usable, pc.fill_null(likely, True).to_pylist(), strict=True)
        if good
    ]


def _first(column: pa.ChunkedArray) -> pa.Array:
    return next(chunk for chunk in column.chunks if len(chunk)).slice(0, 1)


def _look(
    columns: Sequence[pa.ChunkedArray], places: Sequence[int], missing: pa.Array, plain: PlainCells
) -> None:
    shape = len(places), len(columns[places[0]])
    text = pa.concat_arrays([chunk for place in places for chunk in columns[place].chunks])
    text = pc.utf8_trim_whitespace(text)
    gone = _flags(pc.or_kleene(pc.is_null(text), pc.is_in(text, value_set=missing))).reshape(shape)
    known = ~gone.all(1)
    whole = (_flags(pc.match_substring_regex(text, WHOLE)).reshape(shape) | gone).all(1) & known
    real = (
        (_flags(pc.match_substring_regex(text, NUMBER)).reshape(shape) | gone).all(1)
        & known
        & ~whole
    )
    for chosen, kind in ((whole, pa.int64()), (real, pa.float64())):
        chosen_places = np.flatnonzero(chosen)
        cells = np.repeat(chosen, shape[1])
        kept = pc.if_else(pa.array(gone.ravel()[cells]), None, text.filter(pa.array(cells))).cast(
            kind
        )
        for number, place in enumerate(chosen_places.tolist()):
            values = kept.slice(number * shape[1], shape[1])
            if pa.types.is_int64(kind) and _may_be_days(values):
                continue
            plain.numbers[places[place]] = values
            plain.first[places[place]] = int(np.argmin(gone[place]))


def _flags(values: pa.Array) -> np.ndarray:
    flags: np.ndarray = pc.fill_null(values, False).to_numpy(zero_copy_only=False)
    return flags


def _may_be_days(values: pa.Array) -> bool:
    ends = values.fill_null(DAYS[0]).to_numpy()
    return bool(ends.min() >= DAYS[0] and ends.max() <= DAYS[1])
