"""The user's files opened together: the table or the pictures, and the labels that lie in files of
their own.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from raymtl.data.tables.blocks import Cells
from raymtl.data.tables.column_names import (
    TablePart,
    all_label_columns,
    check_name,
    label_columns,
)
from raymtl.data.tables.columns import LocateRow, is_text, named_files, plain, texts
from raymtl.data.tables.folders import FILE
from raymtl.data.tables.joins import joined
from raymtl.data.tables.labels_in_folders import (
    ColumnMaps,
    FoundMaps,
    look_like_maps,
    num_of_stems,
)
from raymtl.data.tables.opened_files import OpenedFiles
from raymtl.data.tables.picture_files import PictureFiles
from raymtl.data.tables.schema import TextForm, label_text
from raymtl.data.tables.settings import FilesConfig
from raymtl.data.tables.stored import as_type, common
from raymtl.data.tables.written_cells import (
    cells_of_column,
    read_column,
    read_columns,
    with_plain_keys,
)
from raymtl.types import UserError


class TableRows(NamedTuple):
    """Some rows: all columns, and of each task those with its labels."""

    table: pa.Table
    labels: Mapping[str, Mapping[str, pa.ChunkedArray]]


class TableDataset(OpenedFiles):
    """The blocks of all files, each read by its number."""

    def __init__(self, source: FilesConfig) -> None:
        """Opens the files that a configuration names. Raises UserError where they do not fit it."""
        super().__init__(source)
        self.forms: Mapping[str, TextForm] | None = {}
        """How the texts of columns are read; None before that is found, when cells stay as they are
        written.
        """
        self.label_forms: dict[str, Mapping[str, TextForm]] = {}
        """How the texts in the labels of each task are read."""
        if source.fitted:
            self.forms = source.fitted.forms
            self.label_forms |= {name: task.forms for name, task in source.fitted.tasks.items()}
        self._map_files = ColumnMaps()
        maps = {file for file_set in self.maps.values() for file in file_set.files}
        self._picture_files = PictureFiles(maps)
        self.probe: Callable[[bytes], None] | None = None
        """Is called with every picture before it is decoded; raises OSError for one that must not
        be.
        """

    def read(self, number: int) -> TableRows:
        """The rows of the block with this number. Raises UserError for a cell that is not of the
        form of its column.
        """
        rows = self._raw(number)
        if self.forms is None:
            return rows
        return self.formed(rows, lambda row: self.locate_row(number, row))

    def formed(self, rows: TableRows, locate_row: LocateRow) -> TableRows:
        """The same rows with texts read in the forms of their columns."""
        forms = self.forms or {}
        written = [part.table.written for part in self.parts]
        cells = {
            name: cells_of_column(written, name)
            for name in rows.table.column_names
            if name in forms or name in self.written_columns
        }
        table = read_columns(rows.table, cells, forms, locate_row)
        labels: dict[str, dict[str, pa.ChunkedArray]] = {}
        for task, columns in rows.labels.items():
            of_task = self.label_forms.get(task, {})
            labels[task] = {}
            for name, column in columns.items():
                task_cells = self.cells_of(task, name)
                labels[task][name] = read_column(
                    column, name, of_task.get(name), task_cells, locate_row
                )
        return TableRows(table, labels)

    def cells_of(self, task: str, column: str) -> Cells:
        """How the cells of a column of labels are written."""
        if task in self.joined:
            written = [self.joined[task].cells]
        else:
            written = [part.table.written for part in self.parts]
        return cells_of_column(written, column, self.classes_of(task))

    def classes_of(self, task: str) -> tuple[str, ...]:
        """The classes that the configuration names, as they are written in files."""
        return tuple(label_text(value) for value in self.source.tasks[task].classes or ())

    def _raw(self, number: int) -> TableRows:
        part_number, block = self.blocks[number]
        part = self.parts[part_number]
        table = part.table.raw(block)
        labels = {name: self._raw_labels(name, part, table) for name in self.source.tasks}
        return TableRows(table.select(self.names), labels)

    def _raw_labels(
        self, name: str, part: TablePart, table: pa.Table
    ) -> Mapping[str, pa.ChunkedArray]:
        """The labels of a task in the rows of a part: out of its own files, of the table, or
        null.
        """
        task = self.source.tasks[name]
        columns = label_columns(name, task)
        if name in self.joined:
            key, labels = str(self.source.key), self.joined[name]
            keyed = with_plain_keys(table, key, part.table.written)
            joined_columns = dict(joined(keyed, labels.rows, key, labels.file_set.shown))
            return {column: joined_columns[column] for column in columns}
        if name in self.boxes or (name in self.maps and not task.column):
            return {columns[0]: pa.chunked_array([self._labels_by_name(name, table)])}
        if part.task in (None, name) and all(column in table.column_names for column in columns):
            return {column: table[column] for column in columns}
        return {column: pa.chunked_array([pa.nulls(len(table))]) for column in columns}

    def _labels_by_name(self, task: str, table: pa.Table) -> pa.Array:
        """The number of each row's boxes, or the file of its map, found by what the row is
        called.
        """
        names = self._row_names(task, table)
        if task in self.boxes:
            every: Sequence[str | None] = names
            if self.format == "pictures":
                every = self._all_pictures
            return self.boxes[task].of(names, every)
        if self.format == "pictures":
            num_of_stem = self._num_of_stem
        else:
            num_of_stem = num_of_stems(names)
        return self.label_files.maps_of(task, names, num_of_stem)

    @cached_property
    def _all_pictures(self) -> list[str]:
        """The names of all pictures of the folders."""
        pictures: list[str] = []
        for part in self.parts:
            for block in part.table.blocks:
                pictures += part.table.read(block)[FILE].to_pylist()
        return pictures

    @cached_property
    def _num_of_stem(self) -> Counter[str]:
        return num_of_stems(self._all_pictures)

    def _row_names(self, task: str, table: pa.Table) -> list[str | None]:
        """What the rows are called: by their key, or by the names of their pictures."""
        key = self.source.key
        if key:
            check_name("data.key", key, table.column_names, self.parts[0].file_set.shown)
            naming = [key]
        elif self.format == "pictures":
            naming = [FILE]
        else:
            labels = all_label_columns(self.source)
            others = [name for name in table.column_names if name not in labels]
            in_text = [name for name in others if is_text(plain(table[name]).type)]
            naming = [name for name in in_text if named_files(texts(table[name]))]
        if not naming:
            raise UserError(
                f"data.tasks.{task}.path: expected a column with the names of pictures, after "
                f"which the maps are called, got {table.column_names}. Say data.key, the column "
                "that names the maps."
            )
        names: list[str | None] = texts(table[naming[0]]).to_pylist()
        return names

    def together(self, numbers: Sequence[int]) -> tuple[TableRows, Callable[[int], str]]:
        """The rows of several blocks as one, and where each row is from. Raises UserError where
        types do not agree.
        """
        blocks = [self.read(number) for number in numbers]
        starts = np.cumsum([0] + [len(rows.table) for rows in blocks])

        def locate_row(row: int) -> str:
            index = int(np.searchsorted(starts, row, side="right")) - 1
            return self.locate_row(numbers[index], row - int(starts[index]))

        labels: dict[str, dict[str, pa.ChunkedArray]] = {}
        for task in self.source.tasks:
            labels[task] = {}
            for column in blocks[0].labels[task]:
                parts = [rows.labels[task][column] for rows in blocks]
                labels[task][column] = self._concatenated(parts, numbers, column)
        # By their positions, since a table looks through all names for each.
        columns_of_blocks = [rows.table.columns for rows in blocks]
        columns = {
            name: self._concatenated(parts, numbers, name)
            for name, *parts in zip(self.names, *columns_of_blocks, strict=True)
        }
        return TableRows(pa.table(columns), labels), locate_row

    def _concatenated(
        self, columns: Sequence[pa.ChunkedArray], numbers: Sequence[int], name: str
    ) -> pa.ChunkedArray:
        """One column. Labels are null in the blocks of other tasks; else types agree already."""
        wanted = common([column.type for column in columns])
        if wanted is None:
            kinds = sorted({str(column.type) for column in columns})
            raise UserError(
                f"{self.blocks[numbers[0]][1].file}: column '{name}': expected one type in all "
                f"parts, got {' and '.join(kinds)}. Correct the parts."
            )
        chunks = [chunk for column in columns for chunk in as_type(column, wanted).chunks]
        return pa.chunked_array(chunks, wanted)

    def contents(self, number: int, column: pa.ChunkedArray) -> list[Callable[[], bytes]]:
        """What reads each picture of a column of a block: of paths below the folder of its file, or
        of bytes.
        """
        part_number, _ = self.blocks[number]
        reads = self._picture_files.contents(column, self.parts[part_number].file_set)
        if self.probe is None:
            return reads
        return [partial(_probed, read, self.probe) for read in reads]

    def holds_maps(self, task: str, column: pa.ChunkedArray) -> bool:
        """Whether these labels are maps, by what was asked for or by how they look."""
        kind = self.source.tasks[task].task_kind
        if task in self.maps:
            return True
        if kind is not None:
            return kind.is_map
        return task not in self.boxes and look_like_maps(column)

    def unread_maps(self, task: str, numbers: Sequence[int], column: pa.ChunkedArray) -> FoundMaps:
        """The maps in the label column of these blocks, and the names of those that are missing."""
        maps = FoundMaps([], [])
        start = 0
        for number in numbers:
            part_number, block = self.blocks[number]
            size = block.rows or 0
            values = plain(column.slice(start, size))
            start += size
            file_set = self.parts[part_number].file_set
            if task in self.joined:
                file_set = self.joined[task].file_set
            if task in self.maps:
                file_set = self.maps[task]
            of_block = self._map_files.of(values, file_set, partial(self.locate_row, number))
            maps.maps.extend(of_block.maps)
            maps.missing.extend(of_block.missing)
        return maps


def _probed(read: Callable[[], bytes], probe: Callable[[bytes], None]) -> bytes:
    content = read()
    probe(content)
    return content
