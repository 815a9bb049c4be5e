"""Labels in files of their own that are found by the names of pictures: maps and boxes."""

import posixpath
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from raymtl.data.tables.blocks import Reading
from raymtl.data.tables.boxes import Boxes, holds_boxes, read_boxes, sources_of
from raymtl.data.tables.column_roles import holds_pictures
from raymtl.data.tables.columns import is_bytes, is_list, is_text, named_files, plain, texts
from raymtl.data.tables.dense_labels import UnreadMap, array_of, array_of_lists
from raymtl.data.tables.listing import Listing, key_of, stems_below
from raymtl.data.tables.paths import MAPS, TABLES, FileSet, locate
from raymtl.data.tables.schema import TaskColumn
from raymtl.storage.places import absolute
from raymtl.types import UserError


class LabelFiles:
    """The maps and boxes of tasks that have files of their own for them."""

    def __init__(self, tasks: Mapping[str, TaskColumn], reading: Reading) -> None:
        """Finds the files. Raises UserError where there are none, or boxes cannot be read."""
        self.maps: dict[str, FileSet] = {}
        """The maps of each task that has a folder of them."""
        self.boxes: dict[str, Boxes] = {}
        """The boxes of each task of detection."""
        self.files: set[str] = set()
        """All files of maps and annotations, which are no pictures and no tables of labels."""
        self._stems: dict[str, dict[str, str]] = {}
        for name, task in tasks.items():
            key = f"data.tasks.{name}.path"
            if task.path:
                self._add(name, task, locate(absolute(task.path, key), key), reading)
            elif task.task_kind is not None and task.task_kind.has_boxes:
                raise UserError(
                    f"{key}: expected where the boxes are, a folder of XML, JSON of COCO or a "
                    "table, got none. Add it."
                )

    def _add(self, name: str, task: TaskColumn, file_set: FileSet, reading: Reading) -> None:
        if holds_boxes(file_set, task):
            self.boxes[name] = read_boxes(file_set, task, reading, f"data.tasks.{name}.path")
            self.files.update(sources_of(file_set))
        elif _holds_maps(file_set, task):
            self.maps[name] = file_set
            self.files.update(file_set.files)

    def maps_of(
        self, task: str, names: Sequence[str | None], num_of_stem: Counter[str]
    ) -> pa.Array:
        """The map of each row out of the task's own folder: of the name that its picture has.

        `num_of_stem` says how many pictures have a name, without folder and ending: a name that
        several have says nothing.
        """
        if task not in self._stems:
            self._stems[task] = stems_below(self.maps[task])
        stems = self._stems[task]
        files: list[str | None] = []
        for name in names:
            file = None
            if name:
                file = stems.get(key_of(name)) or stems.get(_without_ending(name))
                if file is None and num_of_stem[_stem(name)] == 1:
                    file = stems.get(_stem(name))
            files.append(file)
        return pa.array(files, pa.string())


def _holds_maps(file_set: FileSet, task: TaskColumn) -> bool:
    """Whether the path of a task means maps, and no table or data set of its own."""
    maps = any(file.lower().endswith(MAPS) for file in file_set.files)
    tables = any(file.lower().endswith(TABLES) for file in file_set.files)
    kind = task.task_kind
    if kind is not None:
        return maps and kind.is_map
    return maps and not (task.column or task.columns or tables)


def num_of_stems(names: Iterable[str | None]) -> Counter[str]:
    """How many of these pictures have each name, without folder and ending."""
    return Counter(_stem(name) for name in names if name)


def _without_ending(name: str) -> str:
    folder, _, last = key_of(name).rpartition("/")
    stem = last.rpartition(".")[0] or last
    return f"{folder}/{stem}".lstrip("/")


def _stem(name: str) -> str:
    return _without_ending(name).rpartition("/")[2]


def look_like_maps(column: pa.ChunkedArray) -> bool:
    """Whether labels are maps: lists of lists of numbers, contents or names of pictures."""
    values = plain(column)
    if is_list(values.type):
        inner = values.type.value_type
        return is_list(inner) and not is_text(inner.value_type)
    if is_bytes(values.type):
        return holds_pictures(values)
    return is_text(values.type) and named_files(texts(values), MAPS)


class FoundMaps(NamedTuple):
    """The map of each row, None where it has none; and the names of maps that are missing."""

    maps: list[UnreadMap | None]
    missing: list[str]


class ColumnMaps:
    """The maps that columns name, or hold."""

    def __init__(self) -> None:
        self._listings: dict[int, tuple[Listing, frozenset[str]]] = {}
        """The files of each file set, by the identity of the set."""

    def of(
        self, values: pa.Array, file_set: FileSet, locate_row: Callable[[int], str]
    ) -> FoundMaps:
        """The maps that these labels [N] are, or name in the file set."""
        if is_text(values.type) or pa.types.is_null(values.type):
            return self._named(texts(values).to_pylist(), file_set)
        if pa.types.is_struct(values.type):
            structs = values.to_pylist()
            if not any(value and value.get("bytes") for value in structs):
                return self._named([value and value.get("path") for value in structs], file_set)
        maps: list[UnreadMap | None] = []
        for row, value in enumerate(values):
            if value.is_valid:
                maps.append(UnreadMap(locate_row(row), partial(_array_in, value)))
            else:
                maps.append(None)
        return FoundMaps(maps, [])

    def _named(self, names: Sequence[str | None], file_set: FileSet) -> FoundMaps:
        if id(file_set) not in self._listings:
            self._listings[id(file_set)] = Listing(file_set), frozenset(file_set.files)
        listing, present = self._listings[id(file_set)]
        paths: list[str | None] = []
        unlisted: list[str] = []
        for file, name in zip(listing.found(names), names, strict=True):
            path = file or (name and posixpath.join(file_set.root, name.replace("\\", "/")))
            paths.append(path)
            if path and not file:
                unlisted.append(path)
        if unlisted:
            present |= {info.path for info in file_set.fs.get_file_info(unlisted) if info.is_file}
        maps = FoundMaps([], [])
        for name, path in zip(names, paths, strict=True):
            if path and path in present:
                maps.maps.append(UnreadMap(path, partial(_array_at, file_set, path)))
                continue
            maps.maps.append(None)
            if path:
                maps.missing.append(str(name))
        return maps


def _array_in(value: pa.Scalar) -> np.ndarray:
    content = value.as_py()
    if isinstance(content, dict):
        content = content.get("bytes")
    if isinstance(content, list):
        return array_of_lists(content)
    return array_of(content or b"")


def _array_at(file_set: FileSet, path: str) -> np.ndarray:
    return array_of(file_set.read(path))
