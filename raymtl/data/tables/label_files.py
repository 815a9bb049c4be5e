"""Maps and boxes in files of their own, which are found by what the rows are called."""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import pyarrow as pa

from raymtl.data.tables.blocks import Reading
from raymtl.data.tables.box_files import holds_boxes, read_boxes, sources_of
from raymtl.data.tables.boxes import Boxes
from raymtl.data.tables.column_names import TablePart
from raymtl.data.tables.listing import key_of, stems_below
from raymtl.data.tables.paths import MAPS, TABLES, FileSet, locate
from raymtl.data.tables.row_names import RowNames, stem_of, without_ending
from raymtl.data.tables.schema import TaskColumn
from raymtl.data.tables.task_labels import ColumnLabels, LabelColumns, RawBlock, TaskLabels
from raymtl.storage.places import absolute
from raymtl.types import UserError


class BoxLabels(TaskLabels):
    """Boxes: the number of each row's annotation."""

    in_files = True

    def __init__(
        self,
        name: str,
        task: TaskColumn,
        parts: Sequence[TablePart],
        annotations: "Annotations",
        names: RowNames,
    ) -> None:
        super().__init__(name, task, parts)
        self.boxes = annotations.boxes
        self.file_set = annotations.file_set
        self._row_names = names

    def read(self, block: RawBlock) -> LabelColumns:
        names = self._row_names.of(self.name, block.table)
        numbers = self.boxes.of(names, self._row_names.beside(names))
        return {self.columns[0]: pa.chunked_array([numbers])}

    def check_names(self, names: Collection[str]) -> None:
        """Annotations are found by the names of pictures."""

    @property
    def column(self) -> str | None:
        return None

    def are_maps(self, column: pa.ChunkedArray) -> bool:
        return False


class MapLabels(ColumnLabels):
    """Maps in a folder of their own: those that a column names, or else those that are called as
    the rows are.
    """

    in_files = True

    def __init__(
        self,
        name: str,
        task: TaskColumn,
        parts: Sequence[TablePart],
        file_set: FileSet,
        names: RowNames,
    ) -> None:
        super().__init__(name, task, parts)
        self.file_set = self.map_set = file_set
        self._row_names = names
        self._stems: Mapping[str, str] | None = None

    def read(self, block: RawBlock) -> LabelColumns:
        if self.column:
            return super().read(block)
        names = self._row_names.of(self.name, block.table)
        files = self._files(names)
        return {self.columns[0]: pa.chunked_array([pa.array(files, pa.string())])}

    def _files(self, names: Sequence[str | None]) -> list[str | None]:
        """The map of each row. A name, without folder and ending, that several pictures have says
        nothing.
        """
        if self._stems is None:
            self._stems = stems_below(self.map_set)
        stems = self._stems
        num_of_stem = self._row_names.num_of_stems(names)
        files: list[str | None] = []
        for name in names:
            file = None
            if name:
                file = stems.get(key_of(name)) or stems.get(without_ending(name))
                if file is None and num_of_stem[stem_of(name)] == 1:
                    file = stems.get(stem_of(name))
            files.append(file)
        return files

    def check_names(self, names: Collection[str]) -> None:
        if self.column:
            super().check_names(names)

    @property
    def column(self) -> str | None:
        return self.task.column

    def are_maps(self, column: pa.ChunkedArray) -> bool:
        return True

    def folder(self, part: TablePart) -> FileSet:
        return self.map_set


class Annotations(NamedTuple):
    """Boxes, and the files that they stand in."""

    boxes: Boxes
    file_set: FileSet


class LabelFiles(NamedTuple):
    """The maps and boxes of the tasks that have files of their own for them."""

    maps: Mapping[str, FileSet]
    boxes: Mapping[str, Annotations]
    files: Collection[str]
    """All files of maps and annotations, which are no pictures and no tables of labels."""


def find_label_files(tasks: Mapping[str, TaskColumn], reading: Reading) -> LabelFiles:
    """Raises UserError where there are none at a path, or boxes cannot be read."""
    maps: dict[str, FileSet] = {}
    boxes: dict[str, Annotations] = {}
    files: set[str] = set()
    for name, task in tasks.items():
        key = f"data.tasks.{name}.path"
        if task.path:
            file_set = locate(absolute(task.path, key), key)
            if holds_boxes(file_set, task):
                own = file_set._replace(files=tuple(sources_of(file_set)))
                boxes[name] = Annotations(read_boxes(file_set, task, reading, key), own)
                files.update(own.files)
            elif _holds_maps(file_set, task):
                maps[name] = file_set
                files.update(file_set.files)
        elif task.task_kind is not None and task.task_kind.has_boxes:
            raise UserError(
                f"{key}: expected where the boxes are, a folder of XML, JSON of COCO or a "
                "table, got none. Add it."
            )
    return LabelFiles(maps, boxes, files)


def _holds_maps(file_set: FileSet, task: TaskColumn) -> bool:
    """Whether the path of a task means maps, and no table or data set of its own."""
    maps = any(file.lower().endswith(MAPS) for file in file_set.files)
    tables = any(file.lower().endswith(TABLES) for file in file_set.files)
    kind = task.task_kind
    if kind is not None:
        return maps and kind.is_map
    return maps and not (task.column or task.columns or tables)
