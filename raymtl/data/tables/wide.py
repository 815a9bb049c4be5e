"""Many columns of numbers at once, so that a table of ten thousand of them takes seconds.

Only columns that leave no doubt are done here: whole or real numbers, all of them exact in float64
and finite, nan where one is missing. What is said of them, and what they become, is what `columns`
says of each by itself, to the last bit.
"""

from collections.abc import Collection, Iterator, Sequence

import numpy as np
import pyarrow as pa

from raymtl.data.tables.columns import is_number
from raymtl.data.tables.exact_moments import Moments, moments_of_rows
from raymtl.data.tables.fitted_column import FittedColumn

NUMBERS = 4_000_000
"""In a batch of columns: 32 MB."""
TOGETHER = 64
"""Columns that are written together."""
LARGEST = 1e300
"""Real numbers beyond it can overflow when a mean is taken off them."""


def batches(table: pa.Table, names: Collection[str]) -> Iterator[tuple[list[str], np.ndarray]]:
    """Those of these columns that leave no doubt: their names, and their values [C, N] float64, a
    row a column.
    """
    wanted = set(names)
    size = max(1, NUMBERS // max(1, len(table)))
    held: list[tuple[str, np.ndarray, bool]] = []
    for place, field in enumerate(table.schema):
        if field.name in wanted and _is_simple(field.type) and len(table):
            held.append(
                (field.name, table.column(place).to_numpy(), pa.types.is_floating(field.type))
            )
        if len(held) == size:
            yield from _exact(held)
            held = []
    yield from _exact(held)


def _is_simple(kind: pa.DataType) -> bool:
    return is_number(kind) and (
        pa.types.is_integer(kind) or pa.types.is_float32(kind) or pa.types.is_float64(kind)
    )


def _exact(held: Sequence[tuple[str, np.ndarray, bool]]) -> Iterator[tuple[list[str], np.ndarray]]:
    if not held:
        return
    values = np.stack([column.astype(np.float64, copy=False) for _, column, _ in held])
    sizes = np.fmax.reduce(np.abs(values), axis=1)
    exact = sizes < np.array([LARGEST if real else 2**53 for _, _, real in held])
    if exact.any():
        yield [name for (name, *_), good in zip(held, exact, strict=True) if good], values[exact]


def numbers_without_doubt(table: pa.Table, names: Collection[str]) -> set[str]:
    """Those of the columns that are numbers, are not always the same and do not count the rows."""
    sure_names: set[str] = set()
    for batch, values in batches(table, names):
        least, most = np.fmin.reduce(values, axis=1), np.fmax.reduce(values, axis=1)
        sure = (most > least) & (most - least + 1 != values.shape[1])
        sure_names |= {name for name, good in zip(batch, sure, strict=True) if good}
    return sure_names


def changing(table: pa.Table, names: Collection[str], rows: np.ndarray) -> set[str]:
    """Those of the columns that are not always the same in these rows [N]."""
    changing_names: set[str] = set()
    for batch, values in batches(table, names):
        chosen_values = values[:, rows]
        differ = np.fmax.reduce(chosen_values, axis=1) > np.fmin.reduce(chosen_values, axis=1)
        changing_names |= {name for name, good in zip(batch, differ, strict=True) if good}
    return changing_names


def column_moments(table: pa.Table, names: Collection[str], rows: np.ndarray) -> dict[str, Moments]:
    """The moments of those of the columns of numbers that leave no doubt, in these rows [N]."""
    moments: dict[str, Moments] = {}
    for batch, values in batches(table, names):
        chosen = np.ascontiguousarray(values[:, rows])
        moments.update(zip(batch, moments_of_rows(chosen), strict=True))
    return moments


def complete(table: pa.Table, names: Collection[str]) -> set[str]:
    """Those of the columns that leave no doubt and have no missing number."""
    complete_names: set[str] = set()
    for batch, values in batches(table, names):
        full = ~np.isnan(values).any(1)
        complete_names |= {name for name, good in zip(batch, full, strict=True) if good}
    return complete_names


def encode_columns(
    fitted: Sequence[FittedColumn], table: pa.Table, out: np.ndarray, *, impute: bool
) -> set[str]:
    """Writes the columns of numbers that leave no doubt to their places in `out` [N, D]; the names
    of these.

    A missing number becomes the mean of the rows for training where `impute` allows it; else its
    column is not done.
    """
    done: set[str] = set()
    if not len(table):
        return done
    simple = {
        field.name: number for number, field in enumerate(table.schema) if _is_simple(field.type)
    }
    rows = np.empty((min(TOGETHER, len(fitted)), len(table)), np.float32)
    places: list[int] = []
    place = 0
    for column in fitted:
        number = simple.get(column.column)
        if column.role == "number" and number is not None:
            values = table.column(number)
            if _standardised(values, column, rows[len(places)], impute=impute):
                places.append(place)
                done.add(column.column)
        place += column.size
        if len(places) == len(rows):
            _write(rows, places, out)
            places = []
    _write(rows, places, out)
    return done


def _standardised(
    column: pa.ChunkedArray, fitted: FittedColumn, out: np.ndarray, *, impute: bool
) -> bool:
    """Writes the standardised numbers of a column to `out` [N]; whether they leave no doubt."""
    values = column.to_numpy().astype(np.float64, copy=False)
    if pa.types.is_integer(column.type) and not np.fmax.reduce(np.abs(values)) < 2**53:
        return False
    _standardise(values, fitted, out)
    if impute and np.isnan(out.max()):
        _standardise(np.where(np.isnan(values), fitted.mean, values), fitted, out)
    return bool(np.isfinite(out.min()) and np.isfinite(out.max()))


def _standardise(values: np.ndarray, fitted: FittedColumn, out: np.ndarray) -> None:
    with np.errstate(over="ignore"):  # what is infinite is looked at again
        np.multiply(values - fitted.mean, 1 / fitted.std, out=out, casting="same_kind")


def _write(rows: np.ndarray, places: Sequence[int], out: np.ndarray) -> None:
    """Writes the first rows to columns of `out`: as one block, if they stand side by side."""
    if not places:
        return
    first, last = places[0], places[-1]
    if last - first + 1 == len(places):
        out[:, first : last + 1] = rows[: len(places)].T
        return
    for row, place in zip(rows, places, strict=False):
        out[:, place] = row
