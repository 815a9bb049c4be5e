"""The files that a configuration names, opened and checked together."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pyarrow as pa

from raymtl.data.base import SPLITS
from raymtl.data.tables.blocks import Reading, agree
from raymtl.data.tables.column_names import (
    TablePart,
    candidates,
    check_inputs,
    check_parts,
    check_row_columns,
    label_columns,
    names_of_all,
)
from raymtl.data.tables.folders import open_pictures
from raymtl.data.tables.label_files import BoxLabels, MapLabels, find_label_files
from raymtl.data.tables.paths import FileSet, format_of, locate
from raymtl.data.tables.readers import open_table
from raymtl.data.tables.row_names import RowNames
from raymtl.data.tables.schema import Format, TaskColumn
from raymtl.data.tables.settings import FilesConfig, no_path
from raymtl.data.tables.task_labels import ColumnLabels, JoinedLabels, KeyedTable, TaskLabels
from raymtl.data.tables.written_cells import with_plain_keys
from raymtl.encoders.texts.settings import TextInput
from raymtl.storage.notes import Note
from raymtl.storage.places import absolute


class OpenedFiles(NamedTuple):
    """The tables of the rows, and the labels of each task."""

    parts: Sequence[TablePart]
    labels: Mapping[str, TaskLabels]
    format: Format
    notes: Sequence[Note]
    """On the folders of pictures."""


def open_files(source: FilesConfig, piece_bytes: int | None = None) -> OpenedFiles:
    """Opens the files that a configuration names; CSV files larger than `piece_bytes` in pieces.

    Raises UserError where they do not fit it.
    """
    opener = _Opener(source, piece_bytes)
    opener.open_rows()
    if not opener.parts:
        raise no_path()
    parts, form = opener.parts, opener.format
    check_parts(source, parts)
    labels = opener.labels()
    names, shown = names_of_all(parts), parts[0].file_set.shown
    check_row_columns(source, names, shown)
    for of_task in sorted(labels.values(), key=_is_in_rows):
        of_task.check_names(names)
    check_inputs(source, names, shown)
    inputs = candidates(source, names, form)

    def may_be_text(name: str) -> bool:
        """Whether a column that is numbers in one file and texts in another can be texts in both:
        it is no input.
        """
        given = source.given_inputs
        if name in given:
            return isinstance(given[name], TextInput) or given[name] in ("category", "text")
        return name not in inputs

    agree([part.table for part in parts], may_be_text)
    return OpenedFiles(parts, labels, form, opener.notes)


def _is_in_rows(labels: TaskLabels) -> bool:
    """Whether no key joins the labels; a key that is missing is said first."""
    return not isinstance(labels, JoinedLabels)


class _Opener:
    """Opens one file after the other."""

    def __init__(self, source: FilesConfig, piece_bytes: int | None) -> None:
        self.source = source
        self.reading = Reading(
            source.missing_values, source.delimiter, source.encoding, source.columns, piece_bytes
        )
        self.label_files = find_label_files(source.tasks, self.reading)
        self.parts: list[TablePart] = []
        self.notes: list[Note] = []
        self.format: Format = "csv"
        """Of the part that was opened last."""

    def open_rows(self) -> None:
        """Opens the tables and the folders of pictures, and the tables of tasks that have rows of
        their own.
        """
        path = self.source.path
        if isinstance(path, Mapping):
            for split, of_split in path.items():
                self._add(of_split, f"data.path.{split}", split=SPLITS.index(split))
        elif isinstance(path, str):
            if path:
                self._add(path, "data.path")
        else:
            for one in path:
                if one:
                    self._add(one, "data.path")
        for name, task in self.source.tasks.items():
            if task.path and not self.source.key and not self._is_in_label_files(name):
                self._add(task.path, f"data.tasks.{name}.path", task=name)

    def _is_in_label_files(self, task: str) -> bool:
        return task in self.label_files.maps or task in self.label_files.boxes

    def _add(self, path: str, key: str, split: int | None = None, task: str | None = None) -> None:
        file_set = locate(absolute(path, key), key)
        form = self._form(file_set)
        if form == "pictures":
            tasks = [(name, each) for name, each in self.source.tasks.items() if each.may_be_maps]
            files = tuple(file for file in file_set.files if file not in self.label_files.files)
            file_set = file_set._replace(files=files)
            columns = {column for name, each in tasks for column in label_columns(name, each)}
            table, notes = open_pictures(file_set, self.reading, key, columns)
            self.notes += notes
        else:
            table = open_table(file_set, form, self.reading, key)
        self.parts.append(TablePart(file_set, table, split, task))
        self.format = form

    def _form(self, file_set: FileSet) -> Format:
        return self.source.format or format_of(file_set, "data.path")

    def labels(self) -> dict[str, TaskLabels]:
        """The labels of each task."""
        row_names = RowNames(self.source, self.parts, are_pictures=self.format == "pictures")
        tasks = self.source.tasks.items()
        return {name: self._labels_of(name, task, row_names) for name, task in tasks}

    def _labels_of(self, name: str, task: TaskColumn, row_names: RowNames) -> TaskLabels:
        files = self.label_files
        if name in files.boxes:
            return BoxLabels(name, task, self.parts, files.boxes[name], row_names)
        if name in files.maps:
            return MapLabels(name, task, self.parts, files.maps[name], row_names)
        if task.path and self.source.key:
            keyed = self._keyed_table(task.path, f"data.tasks.{name}.path", self.source.key)
            return JoinedLabels(name, task, self.parts, keyed)
        return ColumnLabels(name, task, self.parts)

    def _keyed_table(self, path: str, key: str, column: str) -> KeyedTable:
        file_set = locate(absolute(path, key), key)
        # Files of labels have a header.
        reading = self.reading._replace(columns=(), piece_bytes=None)
        table = open_table(file_set, self._form(file_set), reading, key)
        agree([table], lambda _: True)
        rows = pa.concat_tables(
            [table.raw(block) for block in table.blocks], promote_options="permissive"
        )
        keyed = with_plain_keys(rows, column, table.written)
        return KeyedTable(keyed, file_set, table.written, column)
