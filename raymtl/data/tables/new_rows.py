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
from raymtl.data.tables.faults import Faults, check_readable
from raymtl.data.tables.known_categories import check_categories
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
    faults: Faults
    notes: Sequence[Note] = ()


class NewRows:
    """A table or a folder in the form of the one that a source was fitted on, read block by block.

    Columns of labels may be missing. In episodes of classes the task is which of its file's own
    classes a row is of: `classes` gives those of the support set to the rows that are to be
    predicted.
    """

    def __init__(
        self,
        source: FilesConfig,
        path: str,
        classes: Mapping[str, tuple[str, ...]] | None = None,
        piece_bytes: int | None = None,
    ) -> None:
        """Opens the files; CSV files larger than `piece_bytes` in pieces.

        Raises UserError for files that are not there, or lack a column of the inputs.
        """
        self.path = path
        self.known_values_only = False
        """Whether to refuse values that a column of categories did not have."""
        self.dataset = open_new(source, path, piece_bytes=piece_bytes)
        self.source = self.dataset.source
        self._fitted = source
        self.classes = dict(
            classes
            or {
                name: fitted.classes
                for name, fitted in source.found.tasks.items()
                if fitted.classes
            }
        )
        self._has_one_file = len({block.file for _, block in self.dataset.blocks}) == 1
        if source.episodes == "classes" and classes is None:
            own = {name: _found_classes(source, self.dataset, name) for name in self.source.tasks}
            self.classes = own

    def __len__(self) -> int:
        """The number of blocks."""
        return len(self.dataset.blocks)

    def size(self, number: int) -> int:
        """The number of rows of a block."""
        return self.dataset.blocks[number][1].rows or 0

    def read(self, number: int) -> Unseen:
        """The rows of a block, but those whose picture cannot be read. Raises UserError, naming
        file, row and column.
        """
        block = read_block(self._fitted, self.dataset, number)
        if self.known_values_only:
            locate_row = partial(self.dataset.locate_row, number)
            check_categories(self.source, block.rows.table, locate_row)
        targets, masks, damaged = {}, {}, list[str]()
        for name in self.source.tasks:
            classes = self.classes.get(name, ())
            labels = _labels(self.source, self.dataset, block, name, classes)
            targets[name] = labels.target[block.readable]
            masks[name] = labels.mask[block.readable]
            damaged += labels.unreadable
        origins = block.origins
        if self._has_one_file:
            origins = origins._replace(files=None)
        faults = block.faults._replace(labels=tuple(damaged))
        return Unseen(block.inputs, targets, masks, self.classes, origins, faults)

    def read_all(self) -> Unseen:
        """All rows. Raises UserError, also where no picture can be read."""
        blocks = [self.read(number) for number in range(len(self))]
        faults = Faults.together(block.faults for block in blocks)
        origins = together([block.origins for block in blocks])
        check_readable(self.path, len(origins.rows), faults)
        targets, masks = {}, {}
        for name in self.source.tasks:
            targets[name] = np.concatenate([block.targets[name] for block in blocks])
            masks[name] = np.concatenate([block.masks[name] for block in blocks])
        return Unseen(
            np.concatenate([block.inputs for block in blocks]),
            targets,
            masks,
            self.classes,
            origins,
            faults,
            [*self.dataset.skipped_notes(), *faults.notes()],
        )


def read_unseen(
    source: FilesConfig, path: str, classes: Mapping[str, tuple[str, ...]] | None = None
) -> Unseen:
    """All rows of a file. Raises UserError as `NewRows` does."""
    return NewRows(source, path, classes).read_all()


class _Block(NamedTuple):
    """A block: its rows, which of them can be read [N], and the shapes [N, 2] of their pictures;
    inputs and origins of those that can be read.
    """

    number: int
    rows: TableRows
    readable: np.ndarray
    shapes: np.ndarray
    inputs: np.ndarray
    origins: RowOrigins
    faults: Faults


class _Blocks(NamedTuple):
    """All blocks of a file; inputs and names are those of the rows that can be read."""

    each: Sequence[_Block]
    inputs: np.ndarray
    origins: RowOrigins
    notes: Sequence[Note]


def read_block(source: FilesConfig, dataset: TableDataset, number: int) -> _Block:
    """The inputs of a block; `source` says which column names its rows. Raises UserError, naming
    file, row and column.
    """
    rows = dataset.read(number)
    inputs = encode_inputs(dataset.source, dataset, number, rows)
    origins = origins_of(source, dataset, number, rows, inputs.shapes)
    return _Block(
        number,
        rows,
        inputs.readable,
        inputs.shapes,
        inputs.numbers[inputs.readable],
        origins.at(inputs.readable),
        Faults(pictures=tuple(inputs.unreadable), beyond=tuple(inputs.beyond)),
    )


def read_blocks(source: FilesConfig, dataset: TableDataset, path: str) -> _Blocks:
    """Rows whose pictures cannot be read are left out. Raises UserError where none can be."""
    blocks = [read_block(source, dataset, number) for number in range(len(dataset.blocks))]
    faults = Faults.together(block.faults for block in blocks)
    origins = together([block.origins for block in blocks])
    check_readable(path, len(origins.rows), faults)
    inputs = np.concatenate([block.inputs for block in blocks])
    return _Blocks(blocks, inputs, origins, [*dataset.skipped_notes(), *faults.notes()])


def open_new(
    source: FilesConfig, path: str, *, labelled: bool = True, piece_bytes: int | None = None
) -> TableDataset:
    """The file with the inputs of the run, and those of its tasks that it has labels of."""
    findings = source.found
    if "://" not in path and not Path(path).exists():
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
    dataset = TableDataset(bare, piece_bytes)
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
        return TableDataset(bare.model_copy(update={"tasks": task_columns}), piece_bytes)
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
