"""Maps that columns name, or hold."""

import posixpath
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from raymtl.data.tables.column_roles import holds_pictures
from raymtl.data.tables.columns import is_bytes, is_list, is_text, named_files, plain, texts
from raymtl.data.tables.dense_labels import UnreadMap, array_of, array_of_lists
from raymtl.data.tables.listing import Listing
from raymtl.data.tables.paths import MAPS, FileSet


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
