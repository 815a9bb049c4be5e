"""Labels of a task that a run does not have, in a file in the form of the run's own."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raymtl.data.tables.column_names import label_columns
from raymtl.data.tables.columns import class_numbers, in_order, numbers, texts
from raymtl.data.tables.dataset import TableDataset
from raymtl.data.tables.folders import FILE, FOLDER
from raymtl.data.tables.new_rows import open_new, read_blocks
from raymtl.data.tables.readings import form_of_new_labels
from raymtl.data.tables.row_origins import RowOrigins
from raymtl.data.tables.settings import FilesConfig
from raymtl.storage.notes import Note
from raymtl.types import UserError

LARGEST = 1e38
"""Of a label that a model can learn, in float32."""


class NewlyLabelled(NamedTuple):
    """Inputs [N, ...], and labels [N] of a task that the run does not have: nan where there is
    none.
    """

    column: str
    inputs: np.ndarray
    targets: np.ndarray
    classes: tuple[str, ...]
    """By their numbers; none where labels are numbers."""
    origins: RowOrigins
    notes: Sequence[Note] = ()


def read_new_labels(
    source: FilesConfig,
    path: str,
    column: str | None,
    *,
    of_classes: bool,
    classes: tuple[str, ...] | None = None,
    optional: bool = False,
) -> NewlyLabelled:
    """The same with the labels of a new task, in `column`, or in the only column that the run does
    not know.

    Classes are those given, or found, in their order, but for a task that the run has too. Where
    the column is `optional` and not there, no row has a label. Raises UserError, naming file, row
    and column.
    """
    dataset = open_new(source, path, labelled=False)
    name = column
    if not name or not optional:
        name = _label_column(source, dataset, path, column)
    if name in dataset.names and not of_classes:
        form = form_of_new_labels(source, dataset, name)
        if form is not None:
            forms = {**dataset.forms.columns, name: form}
            dataset.forms = dataset.forms._replace(columns=forms)
    blocks = read_blocks(source, dataset, path)
    labels = [_column_or_nulls(block.rows.table, name) for block in blocks.each]
    known: tuple[str, ...] = ()
    if of_classes and classes is None:
        known = _classes_of(source, name, labels)
    elif of_classes:
        known = classes or ()
    targets = []
    for block, column_of_block in zip(blocks.each, labels, strict=True):
        if of_classes:
            locate_row = partial(dataset.locate_row, block.number)
            index = class_numbers(column_of_block, name, known, locate_row)
            numbered = pc.cast(index, pa.float64()).to_numpy(zero_copy_only=False)
        else:
            numbered = _values(dataset, block.number, name, column_of_block)
        targets.append(numbered[block.readable])
    return NewlyLabelled(
        name, blocks.inputs, np.concatenate(targets), known, blocks.origins, blocks.notes
    )


def _column_or_nulls(table: pa.Table, name: str) -> pa.ChunkedArray:
    if name in table.column_names:
        return table[name]
    return pa.chunked_array([pa.nulls(len(table))])


def _classes_of(
    source: FilesConfig, name: str, labels: Sequence[pa.ChunkedArray]
) -> tuple[str, ...]:
    """The classes of the run's task of this name, or those found."""
    fitted = source.found.tasks.get(name)
    if fitted and fitted.classes:
        return fitted.classes
    different: set[str] = set()
    for column in labels:
        different.update(pc.unique(texts(column)).drop_null().to_pylist())
    return in_order(different)


def _label_column(source: FilesConfig, dataset: TableDataset, path: str, column: str | None) -> str:
    """The given one, or the only one that the run does not know. Raises UserError."""
    findings = source.found
    known = (
        {c.column for c in findings.columns}
        | {*findings.left_out}
        | {source.group, source.key, findings.split_column}
    )
    known |= {name for task in source.tasks.items() for name in label_columns(*task)}
    if dataset.format == "pictures":
        known |= {name for name in dataset.names if name.rstrip("0123456789") in (FILE, FOLDER)}
    others = [name for name in dataset.names if name not in known]
    if column is None and len(others) != 1:
        raise UserError(
            f"{path}: expected task.name to say which column holds the labels, got several that "
            f"the run does not know, or none: {others}."
        )
    name = column or others[0]
    if name not in dataset.names:
        raise UserError(
            f"{path}: task.name: expected one of the columns {dataset.names}, got '{name}'."
        )
    return name


def _values(dataset: TableDataset, number: int, name: str, column: pa.ChunkedArray) -> np.ndarray:
    """Labels that are numbers, [N], nan where there is none. Raises UserError for those that
    float32 cannot hold.
    """

    def locate_row(row: int) -> str:
        return dataset.locate_row(number, row)

    values = numbers(column, name, locate_row)
    odd = np.abs(np.nan_to_num(values, posinf=np.inf)) > LARGEST
    if odd.any():
        row = int(odd.argmax())
        raise UserError(
            f"{locate_row(row)}, column '{name}': expected a finite number of less than "
            f"{LARGEST:g}, got {values[row]:g}. Correct the row, or leave it away."
        )
    return values
