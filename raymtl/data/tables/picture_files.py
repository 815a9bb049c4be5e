"""The pictures that a column names, or holds."""

import posixpath
from collections.abc import Callable, Collection, Sequence
from functools import partial

import pyarrow as pa

from raymtl.data.tables.columns import texts
from raymtl.data.tables.listing import Listing
from raymtl.data.tables.paths import FileSet, files_below


class PictureFiles:
    """The pictures that the columns of tables name, in folders that also hold files of labels."""

    def __init__(self, label_files: Collection[str]) -> None:
        self._label_files = label_files
        self._listings: dict[int, Listing] = {}
        """Of file sets whose pictures are not where their names say, by the identity of the set."""

    def contents(self, column: pa.ChunkedArray, file_set: FileSet) -> list[Callable[[], bytes]]:
        """What reads each picture of a column: of paths below the folder of its file, or of
        bytes.
        """
        is_struct = pa.types.is_struct(column.type)
        if is_struct or pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
            return [partial(_content, value) for value in column.to_pylist()]
        paths = self._paths(file_set, texts(column).to_pylist())
        return [partial(_read, file_set, path) for path in paths]

    def _paths(self, file_set: FileSet, names: Sequence[str | None]) -> list[str | None]:
        """The paths below the folder of the table; where the first is not there, all of them are
        looked for by their names.
        """
        below = [name and posixpath.join(file_set.root, name.replace("\\", "/")) for name in names]
        first = next((path for path in below if path), None)
        if first is None or file_set.is_there(first):
            return below
        if id(file_set) not in self._listings:
            every = files_below(file_set.fs, file_set.root).files
            files = tuple(file for file in every if file not in self._label_files)
            self._listings[id(file_set)] = Listing(file_set._replace(files=files))
        listed = self._listings[id(file_set)].found(names)
        return [file or path for file, path in zip(listed, below, strict=True)]


def _content(value: dict[str, bytes | None] | bytes | None) -> bytes:
    if isinstance(value, dict):
        value = value.get("bytes")
    return value or _no_picture()


def _read(file_set: FileSet, path: str | None) -> bytes:
    if not path:
        return _no_picture()
    return file_set.read(path)


def _no_picture() -> bytes:
    raise OSError("no picture is given")
