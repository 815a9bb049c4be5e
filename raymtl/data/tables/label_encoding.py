"""Labels in the columns of a table, read and encoded as the numbers that a task takes."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raymtl.data.tables.columns import (
    LocateRow,
    is_list,
    numbers,
    plain,
    texts,
    vectors,
)
from raymtl.data.tables.flags import NO_WORDS, YES_WORDS
from raymtl.data.tables.label_kinds import Columns
from raymtl.data.tables.schema import FittedTask
from raymtl.types import UserError

LARGEST = 1e38
"""Labels beyond it have squares and sums that no number can hold."""
LISTED = 10
"""The number of classes that a message lists."""

Encoded = tuple[np.ndarray, np.ndarray]
"""The targets, and which rows have one, [N] bool."""


def encode_task(name: str, fitted: FittedTask, columns: Columns, locate_row: LocateRow) -> Encoded:
    """Targets [N] int64, [N] or [N, D] float64 with nan, as the task takes them; and where they
    are, [N] bool.

    Raises UserError, with file, row and column, for a label outside the classes or one that is no
    number.
    """
    form = fitted.task_kind.label_form
    if form == "class":
        return _encode_classes(name, fitted, columns, locate_row)
    if form == "set":
        return _encode_sets(name, fitted, columns, locate_row)
    return _encode_numbers(fitted, columns, locate_row)


def _encode_classes(
    name: str, fitted: FittedTask, columns: Columns, locate_row: LocateRow
) -> Encoded:
    ((column_name, column),) = columns.items()
    different, row_of = _different(column)
    index_of = pc.index_in(different, value_set=pa.array(fitted.classes, pa.string()))
    unknown = pc.and_(pc.is_valid(different), pc.is_null(index_of))
    if pc.any(unknown).as_py():
        outside = pc.fill_null(pc.take(unknown, row_of), False).to_numpy(zero_copy_only=False)
        row = int(outside.argmax())
        location = f"{locate_row(row)}, column '{column_name}'"
        raise UserError(_outside(name, fitted, location, different[row_of[row].as_py()].as_py()))
    index = pc.take(index_of, row_of)
    mask = pc.is_valid(index).to_numpy(zero_copy_only=False)
    return pc.fill_null(index, 0).to_numpy(zero_copy_only=False).astype(np.int64), mask


def _different(column: pa.ChunkedArray) -> tuple[pa.Array, pa.Array]:
    """The different values as texts, and which of them each row has: labels are few, and writing
    one out takes long.
    """
    values = plain(column)
    if not pa.types.is_integer(values.type):
        values = texts(column)
    encoded = pc.dictionary_encode(values)
    return texts(encoded.dictionary), encoded.indices


def _encode_sets(name: str, fitted: FittedTask, columns: Columns, locate_row: LocateRow) -> Encoded:
    column_name, column = next(iter(columns.items()))
    target = np.full((len(column), len(fitted.classes)), np.nan, np.float32)
    if len(columns) > 1:
        for number, (label, flags) in enumerate(columns.items()):
            target[:, number] = flags_of(label, flags, locate_row)
        return target, np.asarray(~np.isnan(target).all(1))
    number_of = {label: number for number, label in enumerate(fitted.classes)}
    for row, labels in enumerate(label_sets(column, fitted.separator)):
        if labels is None:
            continue
        target[row] = 0
        for label in labels:
            if label not in number_of:
                location = f"{locate_row(row)}, column '{column_name}'"
                raise UserError(_outside(name, fitted, location, label))
            target[row, number_of[label]] = 1
    return target, np.asarray(~np.isnan(target).all(1))


def _encode_numbers(fitted: FittedTask, columns: Columns, locate_row: LocateRow) -> Encoded:
    column_name = next(iter(columns))
    values = label_vectors(columns, locate_row)
    extreme = (np.abs(np.nan_to_num(values)) > LARGEST).any(1)
    if extreme.any():
        row = int(extreme.argmax())
        if fitted.vector:
            got = values[row].tolist()
        else:
            got = values[row, 0]
        raise UserError(
            f"{locate_row(row)}, column '{column_name}': expected a finite number of less than "
            f"1e38, got {got}. Correct the label, or divide all of them."
        )
    mask = ~np.isnan(values).all(1)
    if not fitted.vector:
        return np.nan_to_num(values[:, 0], nan=fitted.means[0]), mask
    if values.shape[1] != len(fitted.means):
        raise UserError(
            f"{locate_row(0)}, column '{column_name}': expected {len(fitted.means)} numbers, got "
            f"{values.shape[1]}."
        )
    return values, mask


def flags_of(label: str, column: pa.ChunkedArray, locate_row: LocateRow) -> np.ndarray:
    """1 for yes, 0 for no and nan for what is missing, [N]. Raises UserError for another text."""
    text = pc.utf8_lower(texts(column))
    index = pc.index_in(text, value_set=pa.array([*NO_WORDS, *YES_WORDS]))
    outside = pc.and_(pc.is_valid(text), pc.is_null(index)).to_numpy(zero_copy_only=False)
    if outside.any():
        row = int(outside.argmax())
        raise UserError(
            f"{locate_row(row)}, column '{label}': expected 0 or 1, true or false, yes or no, got "
            f"{text[row].as_py()!r}."
        )
    values = pc.cast(index, pa.float64()).to_numpy(zero_copy_only=False)
    flags: np.ndarray = np.where(np.isnan(values), np.nan, values >= len(NO_WORDS))
    return flags


def _outside(name: str, fitted: FittedTask, location: str, label: str) -> str:
    """The message about a label that is none of the classes."""
    classes = str(list(fitted.classes[:LISTED]))
    if len(fitted.classes) > LISTED:
        classes += f" and {len(fitted.classes) - LISTED} more"
    hint = f" Correct the label, or add it to data.tasks.{name}.classes."
    if any(isinstance(value, bool) for value in fitted.asked.classes or ()):
        hint = " YAML reads yes and no as true and false: put the classes in quotes."
    if label.lstrip("0") in fitted.classes:
        hint = f" YAML reads {label} as {label.lstrip('0')}: put the classes in quotes."
    return f"{location}: expected a label of task '{name}', one of {classes}, got '{label}'.{hint}"


def label_vectors(columns: Columns, locate_row: LocateRow, size: int | None = None) -> np.ndarray:
    """[N, D] float64, nan for what is missing; a list has `size` numbers, if it is known."""
    if len(columns) == 1:
        name, column = next(iter(columns.items()))
        if is_list(plain(column).type):
            return vectors(column, name, locate_row, size)
    return np.stack([numbers(column, name, locate_row) for name, column in columns.items()], 1)


def label_sets(column: pa.ChunkedArray, separator: str | None) -> Sequence[Sequence[str] | None]:
    """The labels of each row; None where they are missing."""
    values = plain(column)
    if not is_list(values.type):
        return [_parts(text, separator or ";") for text in texts(column).to_pylist()]
    flat = texts(pc.list_flatten(values)).to_pylist()
    sets: list[Sequence[str] | None] = []
    start = 0
    for length in pc.list_value_length(values).to_pylist():
        if length is None:
            sets.append(None)
            continue
        labels = flat[start : start + length]
        sets.append([label for label in labels if label is not None])
        start += length
    return sets


def _parts(text: str | None, separator: str) -> Sequence[str] | None:
    if text is None:
        return None
    parts = [part.strip() for part in text.split(separator)]
    return [part for part in parts if part]
