"""Tables in blocks of rows, and the types that their columns have in all files."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import pyarrow as pa

from raymtl.data.tables.cells import NOTHING, plainly
from raymtl.data.tables.columns import is_number, is_text
from raymtl.data.tables.plain_cells import plain_cells
from raymtl.data.tables.stored import codes_in, common, numbers_in, refusal
from raymtl.storage.notes import Note

if TYPE_CHECKING:
    from raymtl.data.tables.paths import FileSet


class Block(NamedTuple):
    """Rows that are read together."""

    file: str
    row_group: int | None = None
    start: int = 0
    """The number of its first row among those of the file."""
    rows: int | None = None
    """The number of its rows."""
    split: int | None = None
    """The number of the split that the path of the file says."""
    span: tuple[int, int] | None = None
    """Of a piece of a large text file, its first byte and the byte behind its last one."""


class Reading(NamedTuple):
    """How text becomes a table."""

    missing_values: tuple[str, ...]
    delimiter: str | None
    encoding: str
    columns: tuple[str, ...] = ()
    """Their names, where text files have no header."""
    piece_bytes: int | None = None
    """Larger CSV files are read in pieces of about this size; None reads them as a whole."""


class Cells(NamedTuple):
    """Which columns hold cells as they are written in text files."""

    columns: frozenset[str] = frozenset()
    missing: pa.Array = NOTHING
    """The cells that stand for nothing."""
    names: frozenset[str] = frozenset()
    """Columns of names of files and folders, which are never numbers."""
    commas_divide: bool | None = None
    """Whether commas stand between the cells, or semicolons in their place; None where that is
    open.
    """
    notes: tuple[Note, ...] = ()


BlockRows = list[tuple[int | None, int | None]]
"""(row group, rows) of each block of a file."""


class BlockFormat(ABC):
    """A format whose files consist of several blocks, each of which is read by itself."""

    described: ClassVar[str]
    """What a file of it is, for errors."""

    @abstractmethod
    def contents(
        self, file_set: "FileSet", file: str, reading: Reading
    ) -> tuple[pa.Schema, BlockRows]:
        """Names and plain types of the columns, and the blocks.

        Raises ArrowException, OSError or EOFError for a file of something else.
        """

    @abstractmethod
    def read(self, file_set: "FileSet", block: Block) -> pa.Table:
        """The rows of a block, in the types that the file stores. Raises the same."""


ColumnTypes = Mapping[str, pa.DataType]
"""The types of columns, by their names."""


class Table:
    """Blocks of rows with the same columns."""

    def __init__(
        self,
        blocks: Sequence[Block],
        names: Sequence[str],
        read: Callable[[Block, ColumnTypes], pa.Table],
        types: Mapping[str, ColumnTypes] | None = None,
        written: Cells | None = None,
    ) -> None:
        self.blocks = list(blocks)
        self.names = list(names)
        """Of the columns."""
        self.types = dict(types or {})
        """Of the columns of each file."""
        self.wanted: dict[str, pa.DataType] = {}
        """The types that columns are read as whose types differ between files."""
        self.written = written or Cells()
        self._read = read

    def raw(self, block: Block) -> pa.Table:
        """The rows of a block, cells of text files as they are written there.

        Raises UserError where the file cannot be read, or has other columns than others.
        """
        return self._read(block, self.wanted)

    def read(self, block: Block) -> pa.Table:
        """The same with cells of text files as numbers, flags and dates where anybody would read
        them so.
        """
        table = self.raw(block)
        columns = table.columns
        written = [
            index
            for index, field in enumerate(table.schema)
            if field.name in self.written.columns and is_text(field.type)
        ]
        plain_columns = plain_cells([columns[index] for index in written], self.written.missing)
        for number, index in enumerate(written):
            numbers = plain_columns.numbers.get(number)
            if numbers is None:
                columns[index] = plainly(columns[index], self.written.missing)
            else:
                columns[index] = numbers
        return pa.table(columns, names=table.column_names)

    @staticmethod
    def locate_row(block: Block, row: int) -> str:
        """The file, and the row in it, counted from 0."""
        return f"{block.file}: row {block.start + row}"


def agree(tables: Iterable[Table], may_be_text: Callable[[str], bool]) -> None:
    """Has columns whose types differ between files read as one type that holds the values of all.

    Numbers beside texts are numbers where the texts are written so, and texts where these are codes
    such as 01067 or where they may be. Raises UserError for others.
    """
    tables = list(tables)
    if sum(len(table.types) for table in tables) < 2:
        return
    for name, files in _files_by_type(tables).items():
        if len(files) == 1:
            continue
        wanted = common(list(files)) or _number_or_text(name, tables)
        if wanted is None and may_be_text(name):
            wanted = pa.string()
        if wanted is None:
            (first, one), *others = files.items()
            kind, other = next(pair for pair in others if common([first, pair[0]]) is None)
            raise refusal(name, other, kind, one, first)
        for table in tables:
            table.wanted[name] = wanted


def _files_by_type(tables: Sequence[Table]) -> dict[str, dict[pa.DataType, str]]:
    """The types of each column in all files, each with the first file that has it."""
    files: dict[str, dict[pa.DataType, str]] = {}
    for table in tables:
        for file, types in table.types.items():
            for name, kind in types.items():
                files.setdefault(name, {}).setdefault(kind, file)
    return files


def _number_or_text(name: str, tables: Sequence[Table]) -> pa.DataType | None:
    """The type of a column with numbers in some files and texts in others; None where it cannot be
    told.
    """
    every = set(_files_by_type(tables)[name])
    if not all(is_text(kind) or pa.types.is_null(kind) or is_number(kind) for kind in every):
        return None
    columns = [
        table.read(block)[name]
        for table in tables
        for block in table.blocks
        if is_text(table.types.get(block.file, {}).get(name, pa.null()))
    ]
    if any(pa.types.is_boolean(kind) or pa.types.is_temporal(kind) for kind in every):
        return None
    if all(numbers_in(column) for column in columns):
        return pa.float64()
    if all(codes_in(column) for column in columns):
        return pa.string()
    return None
