"""Rows that no run has seen: in the form of the table it was trained on, encoded by what was found
in that one.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.compute as pc

from raymtl.data.counts import most
from raymtl.data.tables.column_names import label_columns
from raymtl.data.tables.columns import class_numbers, in_order, plain, texts
from raymtl.data.tables.dataset import TableDataset, TableRows
from raymtl.data.tables.encode import EncodedLabels, encode_inputs, encode_labels
from raymtl.data.tables.folders import named_first
from raymtl.data.tables.row_origins import RowOrigins, origins_of, together
from raymtl.data.tables.schema import SplitRule, TaskColumn
from raymtl.data.tables.settings import FilesConfig
from raymtl.storage.notes import Note
from raymtl.types import UserError


class Unseen(NamedTuple):
    """Inputs [N, ...], and of the tasks that the file has labels of targets [N, ...] and where
    these are, [N].
    """

    inputs: np.ndarray
    targets: Mapping[str, np.ndarray]
    masks: Mapping[str, np.ndarray]
    classes: Mapping[str, tuple[str, ...]]
    """Of tasks of classes or labels, by their numbers."""
    origins: RowOrigins
    notes: Sequence[Note] = ()


def read_unseen(
    source: FilesConfig, path: str, classes: Mapping[str, tuple[str, ...]] | None = None
) -> Unseen:
    """Reads a table or a folder in the form of the one that `source` was fitted on; columns of
    labels may be missing.

    In episodes of classes the task is which of its file's own classes a row is of: `classes` gives
    those of the support set to the rows that are to be predicted. Raises UserError, naming file,
    row and column.
    """
    dataset = open_new(source, path)
    bare = dataset.source
    known = dict(
        classes
        or {name: fitted.classes for name, fitted in source.found.tasks.items() if fitted.classes}
    )
    if source.episodes == "classes" and classes is None:
        known = {name: _found_classes(source, dataset, name) for name in bare.tasks}
    blocks = read_blocks(source, dataset, path)
    targets: dict[str, list[np.ndarray]] = {name: [] for name in bare.tasks}
    masks: dict[str, list[np.ndarray]] = {name: [] for name in bare.tasks}
    damaged: list[str] = []
    for block in blocks.each:
        for name in bare.tasks:
            labels = _labels(bare, dataset, block, name, known.get(name, ()))
            targets[name].append(labels.target[block.readable])
            masks[name].append(labels.mask[block.readable])
            damaged += labels.unreadable
    notes = [*blocks.notes, *_notes_of_damaged("labels", damaged)]
    return Unseen(
        blocks.inputs,
        {name: np.concatenate(parts) for name, parts in targets.items()},
        {name: np.concatenate(parts) for name, parts in masks.items()},
        known,
        blocks.origins,
        notes,
    )


class _Block(NamedTuple):
    """The rows of a block, which of them can be read [N], and the shapes [N, 2] of their
    pictures.
    """

    number: int
    rows: TableRows
    readable: np.ndarray
    shapes: np.ndarray


class _Blocks(NamedTuple):
    """All blocks of a file; inputs and names are those of the rows that can be read."""

    each: Sequence[_Block]
    inputs: np.ndarray
    origins: RowOrigins
    notes: Sequence[Note]


def read_blocks(source: FilesConfig, dataset: TableDataset, path: str) -> _Blocks:
    """Rows whose pictures cannot be read are left out. Raises UserError where none can be."""
    each, numbers, origins = [], [], []
    unreadable: list[str] = []
    beyond: list[str] = []
    for number in range(len(dataset.blocks)):
        rows = dataset.read(number)
        inputs = encode_inputs(dataset.source, dataset, number, rows)
        each.append(_Block(number, rows, inputs.readable, inputs.shapes))
        numbers.append(inputs.numbers[inputs.readable])
        origins.append(origins_of(source, dataset, number, rows, inputs.shapes).at(inputs.readable))
        unreadable += inputs.unreadable
        beyond += inputs.beyond
    if unreadable and not any(block.readable.any() for block in each):
        raise UserError(
            f"{path}: expected pictures that can be read, got none: {unreadable[0]}. Restore them."
        )
    notes = [*dataset.skipped_notes(), *_notes_of_damaged("pictures", unreadable)]
    if beyond:
        text = (
            f"{len(beyond)} have values outside the range of the run's own, which are cut off: "
            f"{named_first(beyond)}"
        )
        notes.append(Note(place="pictures", text=text))
    return _Blocks(each, np.concatenate(numbers), together(origins), notes)


def _notes_of_damaged(place: str, names: Sequence[str]) -> list[Note]:
    if not names:
        return []
    text = f"{len(names)} cannot be read, and are left out: {named_first(names)}"
    return [Note(place=place, text=text)]


def open_new(source: FilesConfig, path: str, *, labelled: bool = True) -> TableDataset:
    """The file with the inputs of the run, and those of its tasks that it has labels of."""
    findings = source.found
    if not Path(path).exists():
        raise UserError(
            f"{path}: no such file. Give a file or a folder in the form of the run's own."
        )
    settings: dict[str, Any] = {
        "path": path,
        "format": None,
        "tasks": {},
        "exclude": (),
        "key": None,
        "group": None,
        "split": SplitRule(),
        "inputs": tuple(column.column for column in findings.columns),
    }
    bare = source.model_copy(update=settings)
    dataset = TableDataset(bare)
    if not labelled:
        return dataset
    task_columns: dict[str, TaskColumn] = {}
    for name, task in source.tasks.items():
        in_folder = bool(task.path) and findings.tasks[name].task_kind.is_dense
        if in_folder and not task.column:
            task_columns[name] = task.model_copy(update={"kind": findings.tasks[name].kind})
        elif all(column in dataset.names for column in label_columns(name, task)):
            if in_folder:
                task_columns[name] = task
            else:
                task_columns[name] = task.model_copy(update={"path": None})
    if task_columns:
        return TableDataset(bare.model_copy(update={"tasks": task_columns}))
    return dataset


def _found_classes(source: FilesConfig, dataset: TableDataset, name: str) -> tuple[str, ...]:
    labels = [
        texts(next(iter(dataset.read(n).labels[name].values()))) for n in range(len(dataset.blocks))
    ]
    classes = in_order({label for part in labels for label in part.drop_null().to_pylist()})
    if not 2 <= len(classes) <= most(source.ways):
        raise UserError(
            f"{dataset.parts[0].file_set.shown}: column "
            f"'{label_columns(name, source.tasks[name])[0]}': expected labels of 2 to "
            f"{most(source.ways)} classes, as many as the run learned to tell apart (data.ways), "
            f"got {list(classes)}."
        )
    return classes


def _labels(
    source: FilesConfig, dataset: TableDataset, block: _Block, name: str, classes: tuple[str, ...]
) -> EncodedLabels:
    columns = block.rows.labels[name]
    size = len(block.rows.table)
    if all(plain(column).null_count == size for column in columns.values()):
        (task,) = (task for task in source.make_tasks() if task.name == name)
        dtype = np.int64 if task.kind.has_integer_targets else np.float32
        return EncodedLabels(np.zeros((size, *task.target_shape), dtype), np.zeros(size, bool))
    if source.episodes != "classes":
        return encode_labels(source, dataset, block.number, name, block.rows, block.shapes)
    ((column, values),) = columns.items()
    locate_row = partial(dataset.locate_row, block.number)
    what = "classes of the support set"
    index = class_numbers(values, column, classes, locate_row, what)
    numbered = pc.fill_null(index, 0).to_numpy(zero_copy_only=False).astype(np.int64)
    return EncodedLabels(numbered, pc.is_valid(index).to_numpy(False))
