"""Which kind of task the labels in the columns of a table are of, where none was given."""

from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from raymtl.data.tables.columns import (
    LocateRow,
    is_bytes,
    is_list,
    is_number,
    is_text,
    plain,
    texts,
)
from raymtl.data.tables.flags import holds_flags
from raymtl.data.tables.schema import TaskColumn
from raymtl.tasks.binary import BINARY
from raymtl.tasks.classification import CLASSIFICATION
from raymtl.tasks.multilabel import MULTILABEL
from raymtl.tasks.regression import REGRESSION
from raymtl.types import TaskKind, UserError

FEW = 20
"""Whole numbers that are no more different ones than this are taken for classes."""
SEPARATORS = (";", "|", ",")

Columns = Mapping[str, pa.ChunkedArray]
"""Those that hold the labels of a task, by their names."""


def infer_kind(
    name: str, column_spec: TaskColumn, columns: Columns, locate_row: LocateRow
) -> TaskKind:
    """The kind of the labels. Raises UserError for labels of which it is in doubt."""
    if len(columns) > 1:
        if all(holds_flags(column) for column in columns.values()):
            return MULTILABEL
        return REGRESSION
    column = next(iter(columns.values()))
    value_type = plain(column).type
    if is_list(value_type) and not pa.types.is_nested(value_type.value_type):
        return _kind_of_lists(value_type)
    if column_spec.classes:
        return _kind_of_classes(len(column_spec.classes), column)
    known = texts(column).drop_null()
    different = pc.unique(known)
    if pa.types.is_boolean(value_type) or _are_zeros_and_ones(different):
        return BINARY
    if is_number(value_type):
        return _kind_of_numbers(value_type, len(known), different)
    if is_text(value_type):
        kind = _kind_of_texts(len(known), different)
        if kind is None:
            raise _no_classes(name, columns, locate_row)
        return kind
    if pa.types.is_null(value_type):
        return REGRESSION  # and so refused, since it has no labels
    got = str(value_type)
    if is_bytes(value_type):
        got = "bytes that are no texts"
    raise UserError(
        f"{column_at(name, columns, locate_row)}: expected labels that are numbers, texts or "
        f"lists of them, got {got}."
    )


def column_at(name: str, columns: Columns, locate_row: LocateRow) -> str:
    """The task, the file and the column of labels, as an error names them."""
    file = locate_row(0).rpartition(": ")[0]
    return f"data.tasks.{name}: {file}: column '{next(iter(columns))}'"


def _are_zeros_and_ones(different: pa.Array) -> bool:
    return len(different) == 2 and set(different.to_pylist()) == {"0", "1"}


def _kind_of_classes(number: int, column: pa.ChunkedArray) -> TaskKind:
    """The kind of labels whose classes were given."""
    if number == 2 and (is_text(plain(column).type) or holds_flags(column)):
        return BINARY
    return CLASSIFICATION


def _kind_of_lists(value_type: pa.DataType) -> TaskKind:
    if is_number(value_type.value_type):
        return REGRESSION
    return MULTILABEL


def _kind_of_numbers(value_type: pa.DataType, num_known: int, different: pa.Array) -> TaskKind:
    """Classes where few whole numbers come again, each three times on average; else numbers."""
    few = 2 <= len(different) <= FEW and num_known >= 3 * len(different)
    if not few or pa.types.is_temporal(value_type):
        return REGRESSION
    if all(_is_whole(text) for text in different.to_pylist()):
        return CLASSIFICATION
    return REGRESSION


def _kind_of_texts(num_known: int, different: pa.Array) -> TaskKind | None:
    """The kind of labels that are texts; None where they are no classes."""
    if _reused(different.to_pylist()):
        return MULTILABEL
    if len(different) == 2 and num_known > 2:
        return BINARY
    if 2 <= len(different) <= max(FEW, num_known / 5):
        return CLASSIFICATION
    return None


def _no_classes(name: str, columns: Columns, locate_row: LocateRow) -> UserError:
    """The error for texts that are no classes: one alone, or too many different ones."""
    column = column_at(name, columns, locate_row)
    known = texts(next(iter(columns.values()))).drop_null()
    different = pc.unique(known)
    if len(different) >= 2:
        return UserError(
            f"{column}: expected labels that come again, got {len(different)} different texts in "
            f"{len(known)} rows. Say data.tasks.{name}.kind."
        )
    got = "no labels at all"
    if len(different):
        got = f"'{different[0].as_py()}' alone"
    return UserError(
        f"{column}: expected labels of two classes at least, got {got}. "
        "Correct the column, or leave the task away."
    )


def _reused(different: Sequence[str]) -> bool:
    """Whether the texts are made of labels between semicolons or bars, of which one at least is in
    two of them.
    """
    for mark in SEPARATORS[:2]:
        parts = [part.strip() for text in different if mark in text for part in text.split(mark)]
        alone = {text.strip() for text in different if mark not in text}
        if parts and len(parts) + len(alone) > len(alone.union(parts)):
            return True
    return False


def _is_whole(text: str) -> bool:
    return text.lstrip("-").isdigit()
