"""What the rows are called, by which maps and boxes in files of their own are found."""

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property

import pyarrow as pa

from raymtl.data.tables.column_names import TablePart, all_label_columns, check_name
from raymtl.data.tables.columns import is_text, named_files, plain, texts
from raymtl.data.tables.folders import FILE
from raymtl.data.tables.listing import key_of
from raymtl.data.tables.settings import FilesConfig
from raymtl.types import UserError


class RowNames:
    """The names of the rows of a dataset: those of their pictures, or what data.key says."""

    def __init__(
        self, source: FilesConfig, parts: Sequence[TablePart], *, are_pictures: bool
    ) -> None:
        self._source = source
        self._parts = parts
        self._are_pictures = are_pictures
        """Whether the rows are the pictures of folders, of which all names are known."""

    def of(self, task: str, table: pa.Table) -> list[str | None]:
        """The names of the rows of a block. Raises UserError where nothing names them."""
        names: list[str | None] = texts(table[self._naming_column(task, table)]).to_pylist()
        return names

    def _naming_column(self, task: str, table: pa.Table) -> str:
        key = self._source.key
        if key:
            check_name("data.key", key, table.column_names, self._parts[0].file_set.shown)
            return key
        if self._are_pictures:
            return FILE
        labels = all_label_columns(self._source)
        others: list[str] = [name for name in table.column_names if name not in labels]
        for name in others:
            if is_text(plain(table[name]).type) and named_files(texts(table[name])):
                return name
        raise UserError(
            f"data.tasks.{task}.path: expected a column with the names of pictures, after "
            f"which the maps are called, got {table.column_names}. Say data.key, the column "
            "that names the maps."
        )

    def beside(self, names: Sequence[str | None]) -> Sequence[str | None]:
        """All names that one of these can be mistaken for: those of all pictures of the folders,
        or of a table these names themselves.
        """
        if self._are_pictures:
            return self._all_pictures
        return names

    @cached_property
    def _all_pictures(self) -> list[str | None]:
        pictures: list[str | None] = []
        for part in self._parts:
            for block in part.table.blocks:
                pictures += part.table.read(block)[FILE].to_pylist()
        return pictures

    def num_of_stems(self, names: Sequence[str | None]) -> Counter[str]:
        """How many pictures have each name, without folder and ending."""
        if self._are_pictures:
            return self._num_of_stem
        return _num_of_stems(names)

    @cached_property
    def _num_of_stem(self) -> Counter[str]:
        return _num_of_stems(self._all_pictures)


def _num_of_stems(names: Iterable[str | None]) -> Counter[str]:
    return Counter(stem_of(name) for name in names if name)


def without_ending(name: str) -> str:
    """The path of a picture without its ending."""
    folder, _, last = key_of(name).rpartition("/")
    stem = last.rpartition(".")[0] or last
    return f"{folder}/{stem}".lstrip("/")


def stem_of(name: str) -> str:
    """The name of a picture without folder and ending."""
    return without_ending(name).rpartition("/")[2]
