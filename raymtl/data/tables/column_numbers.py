"""Columns of inputs as numbers: what has to be known for it, and the numbers."""

import re
import zlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raymtl.data.tables.columns import LocateRow, in_order, numbers, texts, vectors
from raymtl.data.tables.schema import FittedColumn
from raymtl.data.tables.settings import FilesConfig
from raymtl.data.tables.statistics import Counts, InputSums
from raymtl.data.tables.text_columns import encode_tokens, encoded_texts
from raymtl.types import UserError


def fit_columns(
    columns: Sequence[FittedColumn], sums: InputSums, source: FilesConfig, place: str
) -> list[FittedColumn]:
    """What has to be known to encode the columns, of their roles and of the sums over the rows for
    training, of which the first is at `place`. Raises UserError for a column without numbers.
    """
    fitted = []
    for column in columns:
        name = column.column
        if column.role == "picture" or _is_trained(column):
            fitted.append(column)
        elif column.role == "text" and column.encoder is None:
            fitted.append(column.model_copy(update={"size": source.text_size}))
        elif column.role == "category":
            categories = _categories(sums.categories[name], source.max_categories)
            found = {"categories": categories, "size": len(categories) + 1}
            fitted.append(column.model_copy(update=found))
        else:
            moments = sums.numbers[name]
            if not moments.count:
                raise UserError(
                    f"{place}, column '{name}': expected numbers in the rows for training, got "
                    "none."
                )
            # A vector keeps its geometry: one mean and one spread for all of its numbers.
            found = {"mean": moments.mean, "std": moments.std or 1.0}
            fitted.append(column.model_copy(update=found))
    return fitted


def _is_trained(column: FittedColumn) -> bool:
    """Whether its numbers are those of tokens."""
    return column.encoder is not None and not column.encoder.frozen


def _categories(counts: Counts, max_categories: int) -> tuple[str, ...]:
    """The different texts of a column; of too many the frequent ones, and all others are one."""
    frequent = sorted(counts, key=lambda text: (-counts[text], text))
    return in_order(frequent[:max_categories])


def encode_column(
    fitted: FittedColumn,
    column: pa.ChunkedArray,
    out: np.ndarray,
    locate_row: LocateRow,
    *,
    impute: bool,
) -> None:
    """Writes the numbers of a column to `out` [N, size].

    A missing number becomes the mean of the rows for training, 0 in their scale, where `impute`
    allows it. Raises UserError for infinite numbers, and for missing ones else.
    """
    if _is_trained(fitted):
        encode_tokens(fitted, column, out)
        return
    if fitted.encoder is not None:
        values = encoded_texts(fitted, column)
        values = np.where(np.isnan(values), fitted.mean, values)
        np.multiply(values - fitted.mean, 1 / fitted.std, out=out, casting="same_kind")
        return
    if fitted.role == "text":
        out[:] = hashed(texts(column), fitted.size)
        return
    if fitted.role == "category":
        index = pc.index_in(texts(column), value_set=pa.array(fitted.categories, pa.string()))
        codes = pc.fill_null(index, fitted.size - 1).to_numpy(zero_copy_only=False)
        out[:] = 0
        out[np.arange(len(out)), codes] = 1
        return
    if fitted.role == "vector":
        values = vectors(column, fitted.column, locate_row, fitted.size)
    else:
        values = numbers(column, fitted.column, locate_row)[:, None]
    if not np.isfinite(values.sum()):
        _check_finite(values, fitted.column, locate_row, impute=impute)
        values = np.where(np.isnan(values), fitted.mean, values)
    np.multiply(values - fitted.mean, 1 / fitted.std, out=out, casting="same_kind")


def _check_finite(values: np.ndarray, name: str, locate_row: LocateRow, *, impute: bool) -> None:
    """Raises UserError for infinite numbers in [N, size], and for missing ones unless `impute`."""
    infinite = np.isinf(values).any(1)
    if infinite.any():
        row = int(infinite.argmax())
        raise UserError(
            f"{locate_row(row)}, column '{name}': expected a finite number, got "
            f"{values[row].tolist()}."
        )
    if impute:
        return
    missing = ~np.isfinite(values).all(1)
    raise UserError(
        f"{locate_row(int(missing.argmax()))}, column '{name}': expected a number, got none "
        f"({int(missing.sum())} such rows here). data.missing_inputs: mean takes the mean of "
        "the rows for training; or leave the column away."
    )


def hashed(text: pa.Array, size: int) -> np.ndarray:
    """Bags of words, [N, size] float32 of length 1: each word is counted in the place that its hash
    says.
    """
    out = np.zeros((len(text), size), np.float32)
    places: dict[str, int] = {}
    for row, value in enumerate(text.to_pylist()):
        for word in re.findall(r"\w+", (value or "").lower()):
            place = places.get(word)
            if place is None:
                place = places[word] = zlib.crc32(word.encode()) % size
            out[row, place] += 1
    unit_rows: np.ndarray = out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1)
    return unit_rows
