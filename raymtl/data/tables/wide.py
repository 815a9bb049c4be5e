"""Many columns of numbers at once, so that a table of ten thousand of them takes seconds.

Only columns that leave no doubt are done here: whole or real numbers, all of them exact in float64
and finite, nan where one is missing. What is said of them, and what they become, is what `columns`
says of each by itself, to the last bit.
"""

from collections.abc import Collection, Iterator, Sequence

import numpy as np
import pyarrow as pa

from raymtl.data.tables.columns import is_number, moments
from raymtl.data.tables.schema import FittedColumn

NUMBERS = 4_000_000
"""In a batch of columns: 32 MB."""
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


def fit_columns(
    table: pa.Table, names: Collection[str], rows: np.ndarray
) -> dict[str, FittedColumn]:
    """Those of the columns of numbers that leave no doubt, by their mean and spread in these rows
    [N].
    """
    fitted: dict[str, FittedColumn] = {}
    for batch, values in batches(table, names):
        chosen_values = np.ascontiguousarray(
            values[:, rows]
        )  # whose sums are then those of each row by itself
        complete = ~np.isnan(chosen_values).any(1)
        for name, known in zip(
            np.array(batch, object)[~complete].tolist(), chosen_values[~complete], strict=True
        ):
            if not np.isnan(known).all():  # which `fit_column` refuses
                fitted[name] = _fitted(name, *moments(known[~np.isnan(known)]))
        chosen_values = chosen_values[complete]
        scale = np.abs(chosen_values).max(1, initial=0)
        scale[scale == 0] = 1.0
        scaled = chosen_values / scale[:, None]
        means, stds = scaled.mean(1), scaled.std(1)
        stds[stds <= 1e-12 * np.abs(means)] = 0.0
        names = np.array(batch, object)[complete].tolist()
        for name, mean, std in zip(
            names, (scale * means).tolist(), (scale * stds).tolist(), strict=True
        ):
            fitted[name] = _fitted(name, mean, std)
    return fitted


def _fitted(name: str, mean: float, std: float) -> FittedColumn:
    return FittedColumn(column=name, role="number", mean=mean, std=std or 1.0)


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
    places: dict[str, tuple[int, FittedColumn]] = {}
    start = 0
    for column in fitted:
        if column.role == "number":
            places[column.column] = start, column
        start += column.size
    done: set[str] = set()
    for names, numbers in batches(table, places):
        missing = np.isnan(numbers)
        if impute:
            good = np.full(len(names), True)
        else:
            good = ~missing.any(1)
        batch = [name for name, sure in zip(names, good.tolist(), strict=True) if sure]
        mean = np.array([places[name][1].mean for name in batch])[:, None]
        std = np.array([places[name][1].std for name in batch])[:, None]
        values = np.where(missing[good], mean, numbers[good])
        values -= mean
        values *= 1 / std
        out[:, [places[name][0] for name in batch]] = values.T
        done.update(batch)
    return done
