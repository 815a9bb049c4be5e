"""The files that a configuration names, opened and checked together."""

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from functools import cached_property

import pyarrow as pa
from pyarrow.fs import FileInfo

from raymtl.data.base import SPLITS
from raymtl.data.tables.blocks import Block, Reading, agree
from raymtl.data.tables.column_names import (
    JoinedLabels,
    NameCheck,
    TablePart,
    all_label_columns,
    check_name,
    check_parts,
    label_columns,
)
from raymtl.data.tables.folders import FILE, named_first, open_pictures
from raymtl.data.tables.labels_in_folders import (
    LabelFiles,
)
from raymtl.data.tables.paths import FileSet, format_of, locate
from raymtl.data.tables.readers import open_table
from raymtl.data.tables.schema import Fitted, Format, TaskColumn
from raymtl.data.tables.settings import FilesConfig, no_path
from raymtl.data.tables.written_cells import (
    with_plain_keys,
)
from raymtl.storage.notes import Note
from raymtl.storage.places import absolute


class OpenedFiles:
    """The tables, the pictures and the files of labels, as blocks of rows."""

    def __init__(self, source: FilesConfig) -> None:
        """Opens the files that a configuration names. Raises UserError where they do not fit it."""
        self.source = source
        self.reading = Reading(
            source.missing_values, source.delimiter, source.encoding, source.columns
        )
        self.label_files = LabelFiles(source.tasks, self.reading)
        self.maps = self.label_files.maps
        self.boxes = self.label_files.boxes
        self.parts: list[TablePart] = []
        self.joined: dict[str, JoinedLabels] = {}
        self.folder_notes: list[Note] = []
        """Notes on the folders of pictures."""
        self._open_rows()
        self._open_labels()
        if not self.parts:
            raise no_path()
        check_parts(source, self.parts)
        self.blocks: list[tuple[int, Block]] = [
            (number, block) for number, part in enumerate(self.parts) for block in part.table.blocks
        ]
        """All blocks, each with the number of its part."""
        self.known = frozenset.intersection(*(frozenset(part.table.names) for part in self.parts))
        self.names = [name for name in self.parts[0].table.names if name in self.known]
        """The columns that all parts have."""
        self._check_names()
        agree([part.table for part in self.parts], self._may_be_text)

    def _open_rows(self) -> None:
        path = self.source.path
        if isinstance(path, Mapping):
            for split, of_split in path.items():
                self._add(of_split, f"data.path.{split}", split=SPLITS.index(split))
            return
        paths = path
        if isinstance(paths, str):
            paths = (paths,)
        for one in paths:
            if one:
                self._add(one, "data.path")

    def _open_labels(self) -> None:
        """Opens the files of tasks with tables of their own, joined by data.key where it is
        given.
        """
        for name, task in self.source.tasks.items():
            if name in self.maps or name in self.boxes or not task.path:
                continue
            key = f"data.tasks.{name}.path"
            if self.source.key:
                self.joined[name] = self._joined_labels(task.path, key, self.source.key)
            else:
                self._add(task.path, key, task=name)

    def _joined_labels(self, path: str, key: str, column: str) -> JoinedLabels:
        file_set = locate(absolute(path, key), key)
        reading = self.reading._replace(columns=())  # files of labels have a header
        table = open_table(file_set, self._form(file_set), reading, key)
        agree([table], lambda _: True)
        rows = pa.concat_tables(
            [table.raw(block) for block in table.blocks], promote_options="permissive"
        )
        return JoinedLabels(with_plain_keys(rows, column, table.written), file_set, table.written)

    def _may_be_text(self, name: str) -> bool:
        """Whether a column that is numbers in one file and texts in another can be texts in both:
        it is no input.
        """
        given = self.source.inputs
        if isinstance(given, Mapping) and name in given:
            return given[name] in ("category", "text")
        return name not in self.candidates()

    def _add(self, path: str, key: str, split: int | None = None, task: str | None = None) -> None:
        file_set = locate(absolute(path, key), key)
        form = self._form(file_set)
        if form == "pictures":
            tasks = [(name, each) for name, each in self.source.tasks.items() if each.may_be_maps]
            files = tuple(file for file in file_set.files if file not in self.label_files.files)
            file_set = file_set._replace(files=files)
            columns = {column for name, each in tasks for column in label_columns(name, each)}
            table, notes = open_pictures(file_set, self.reading, key, columns)
            self.folder_notes += notes
        else:
            table = open_table(file_set, form, self.reading, key)
        self.parts.append(TablePart(file_set, table, split, task))
        self.format: Format = form

    def skipped_notes(self) -> list[Note]:
        """Notes on the files that are passed over, for their names or their kind."""
        file_sets = [*(part.file_set for part in self.parts), *self.maps.values()]
        skipped = list(dict.fromkeys(file for file_set in file_sets for file in file_set.skipped))
        if not skipped:
            return self.folder_notes
        text = (
            f"{len(skipped)} are passed over, since their names or folders begin with . or _: "
            f"{named_first(skipped)}"
        )
        return [*self.folder_notes, Note(place="files", text=text, key="data.path")]

    def _form(self, file_set: FileSet) -> Format:
        return self.source.format or format_of(file_set, "data.path")

    def _check_names(self) -> None:
        check = NameCheck(self.source, self.parts, self.joined, self.names)
        check.of_rows()
        check.of_joined_labels()
        tasks = self.source.tasks.items()
        check.of_labels([name for name, task in tasks if self._in_columns(name, task)])
        check.of_inputs()

    def check_fitted(self, fitted: Fitted) -> None:
        """Raises UserError where files that have moved lack a column of those that the inputs were
        found in.
        """
        shown = self.parts[0].file_set.shown
        for column in fitted.columns:
            check_name("data.path", column.column, self.known, shown)
        if fitted.split_column is not None:
            check_name("data.path", fitted.split_column, self.names, shown)

    def _in_columns(self, name: str, task: TaskColumn) -> bool:
        """Whether the labels stand in columns of a table, not in files that are found by the names
        of pictures.
        """
        return name not in self.boxes and (name not in self.maps or task.column is not None)

    def candidates(self) -> dict[str, bool]:
        """The columns that could be inputs -> whether they were named, in the order of their names
        or of the table.
        """
        source = self.source
        if not isinstance(source.inputs, str):
            chosen: list[str] = []
            for name in source.inputs:
                if name in self.known:
                    chosen.append(name)
                else:
                    chosen += [other for other in self.names if fnmatchcase(other, name)]
            return dict.fromkeys(chosen, True)
        if self.format == "pictures":
            return {FILE: True}
        taken: set[str | None] = {*all_label_columns(source), source.group, source.key}
        taken |= {source.split.column, source.split.key}
        left = []
        for name in self.names:
            excluded = any(fnmatchcase(name, pattern) for pattern in source.exclude)
            if name not in taken and not excluded:
                left.append(name)
        return dict.fromkeys(left, False)

    @cached_property
    def names_of_files(self) -> frozenset[str]:
        """Columns of names of files and folders, which are never numbers."""
        return frozenset(name for part in self.parts for name in part.table.written.names)

    @cached_property
    def written_columns(self) -> frozenset[str]:
        """Columns of cells as they are written in text files."""
        return frozenset(name for part in self.parts for name in part.table.written.columns)

    @property
    def commas_divide(self) -> bool | None:
        """Whether commas stand between the cells of text files, or semicolons; None where that is
        open.
        """
        said = {part.table.written.commas_divide for part in self.parts} - {None}
        if said:
            return any(said)
        return None

    @property
    def header_notes(self) -> tuple[Note, ...]:
        """On headers that look like a row of data."""
        return tuple(note for part in self.parts for note in part.table.written.notes)

    def split_of(self, number: int) -> int | None:
        """The split that the path of a block says."""
        part_number, block = self.blocks[number]
        part_split = self.parts[part_number].split
        if part_split is None:
            return block.split
        return part_split

    def locate_row(self, number: int, row: int) -> str:
        """File and row of a row of a block."""
        part_number, block = self.blocks[number]
        return self.parts[part_number].table.locate_row(block, row)

    def megabytes(self, numbers_a_row: int | None = None) -> float:
        """The size of all rows, by that of the files or, where it is known, by what a row
        becomes.
        """
        if numbers_a_row is not None:
            return self.num_rows * numbers_a_row / 1e6
        return float(sum(info.size for info in self._file_infos())) / 1e6

    def _file_infos(self) -> Iterator[FileInfo]:
        for part in self.parts:
            yield from part.file_set.fs.get_file_info(list(part.file_set.files))

    @property
    def num_rows(self) -> int:
        """The number of rows of all blocks."""
        return sum(block.rows or 0 for _, block in self.blocks)
