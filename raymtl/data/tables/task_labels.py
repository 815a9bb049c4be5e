"""The labels of a task: in columns of the rows' own table, or in a table that a key joins to it."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import ClassVar, NamedTuple

import pyarrow as pa

from raymtl.data.tables.blocks import Cells
from raymtl.data.tables.column_names import TablePart, check_name, label_columns
from raymtl.data.tables.joins import joined
from raymtl.data.tables.map_files import look_like_maps
from raymtl.data.tables.paths import FileSet
from raymtl.data.tables.schema import TaskColumn, label_text
from raymtl.data.tables.written_cells import cells_of_column, with_plain_keys

LabelColumns = Mapping[str, pa.ChunkedArray]
"""The columns with the labels of a task, by their names."""


class RawBlock(NamedTuple):
    """Rows that were read together, with all columns of their file."""

    part: TablePart
    table: pa.Table
    """Cells of text files are as they are written there."""


class TaskLabels(ABC):
    """Where the labels of one task are, and how the rows of a block get theirs."""

    in_files: ClassVar[bool] = False
    """Whether they are maps or boxes in files of their own."""

    def __init__(self, name: str, task: TaskColumn, parts: Sequence[TablePart]) -> None:
        self.name = name
        self.task = task
        self.parts = parts
        """The tables of the rows."""
        self.columns = label_columns(name, task)
        self.file_set: FileSet | None = None
        """The files of their own that they are read from."""

    @abstractmethod
    def read(self, block: RawBlock) -> LabelColumns:
        """The labels of the rows of a block, null where there is none. Cells of text files are as
        they are written there.
        """

    @abstractmethod
    def check_names(self, names: Collection[str]) -> None:
        """Raises UserError where a column is missing that the labels are read from or found by;
        `names` are the columns that all parts have.
        """

    @property
    def column(self) -> str | None:
        """The column, or the first of several, that they stand in; None where they are found by
        what the rows are called.
        """
        return self.columns[0]

    def are_maps(self, column: pa.ChunkedArray) -> bool:
        """Whether these labels are maps, by what was asked for or by how they look."""
        kind = self.task.task_kind
        if kind is None:
            return look_like_maps(column)
        return kind.is_map

    def folder(self, part: TablePart) -> FileSet:
        """The files among which the rows of a part have their maps."""
        return part.file_set

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes that the configuration names, as they are written in files."""
        return tuple(label_text(value) for value in self.task.classes or ())

    def cells(self, column: str) -> Cells:
        """How the cells of a column are written."""
        return cells_of_column([part.table.written for part in self.parts], column, self.classes)


class ColumnLabels(TaskLabels):
    """Labels in columns of the rows' own table; of all parts, or of those that are this task's
    alone.
    """

    def read(self, block: RawBlock) -> LabelColumns:
        table = block.table
        is_labelled = block.part.task in (None, self.name)
        if is_labelled and all(column in table.column_names for column in self.columns):
            return {column: table[column] for column in self.columns}
        return {column: pa.chunked_array([pa.nulls(len(table))]) for column in self.columns}

    def check_names(self, names: Collection[str]) -> None:
        for column in self.columns:
            for part in self._holders():
                key = f"data.tasks.{self.name}"
                check_name(key, column, part.table.names, part.file_set.shown)

    def _holders(self) -> Iterator[TablePart]:
        """The parts that hold the labels."""
        own = [part for part in self.parts if part.task == self.name]
        if own:
            yield from own
        else:
            yield from (part for part in self.parts if part.task is None)


class KeyedTable(NamedTuple):
    """A table with the labels of a task, which the column `key` joins to the rows."""

    rows: pa.Table
    file_set: FileSet
    cells: Cells
    """How the cells of its columns are written."""
    key: str


class JoinedLabels(TaskLabels):
    """Labels in a table of their own, which data.key joins to the rows."""

    def __init__(
        self, name: str, task: TaskColumn, parts: Sequence[TablePart], labels: KeyedTable
    ) -> None:
        super().__init__(name, task, parts)
        self.labels = labels
        self.file_set = labels.file_set

    def read(self, block: RawBlock) -> LabelColumns:
        labels = self.labels
        keyed = with_plain_keys(block.table, labels.key, block.part.table.written)
        every = dict(joined(keyed, labels.rows, labels.key, labels.file_set.shown))
        return {column: every[column] for column in self.columns}

    def check_names(self, names: Collection[str]) -> None:
        labels = self.labels
        for column in (labels.key, *self.columns):
            known = labels.rows.column_names
            check_name(f"data.tasks.{self.name}", column, known, labels.file_set.shown)
        check_name("data.key", labels.key, names, self.parts[0].file_set.shown)

    def folder(self, part: TablePart) -> FileSet:
        return self.labels.file_set

    def cells(self, column: str) -> Cells:
        return cells_of_column([self.labels.cells], column, self.classes)
