"""Files as blocks of rows: Parquet, CSV, ARFF and MATLAB cells.

A block is a row group of a Parquet file, or another file as a whole. It is read by itself, so that
files larger than memory can be read in any order.
"""

import csv as csv_module
import io
import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from threading import Lock
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raymtl.data.tables.arff import read_arff
from raymtl.data.tables.cells import NOTHING, missing_words, plainly
from raymtl.data.tables.columns import is_number, is_text
from raymtl.data.tables.contents import arrow_stream, decoded, refuse_others, uncompressed
from raymtl.data.tables.findings import header_note
from raymtl.data.tables.paths import ENDINGS, FileSet, has_threads, reason
from raymtl.data.tables.plain_cells import plain_cells
from raymtl.data.tables.schema import Format
from raymtl.data.tables.splits import ALIASES
from raymtl.data.tables.stored import (
    as_type,
    codes_in,
    common,
    holds_texts,
    kind_of_bytes,
    numbers_in,
    plainer,
    refusal,
)
from raymtl.notes import Note
from raymtl.types import UserError


class Block(NamedTuple):
    """Rows that are read together. `split` is the split that their path says, `task` the one task
    they are for.
    """

    file: str
    row_group: int | None = None
    start: int = 0
    """Of its rows among those of the file."""
    rows: int | None = None
    split: int | None = None
    task: str | None = None


class Reading(NamedTuple):
    """How text becomes a table."""

    missing_values: tuple[str, ...]
    delimiter: str | None
    encoding: str
    columns: tuple[str, ...] = ()
    """Their names, where text files have no header."""


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


Kinds = Mapping[str, pa.DataType]
"""The types of columns, by their names."""
SAMPLED = 64_000  # characters of a CSV file that its delimiter is found by
DELIMITERS = ("\t", ";", "|", ",")  # the comma last, for it stands in numbers and texts too
LOOKED_AT = 100  # columns, and rows, that tell whether a header is one
# of tables out of text files that are kept, since looking at data reads a file several times
RECENT_MB = 64


class Table:
    """Blocks of rows with the same columns."""

    def __init__(
        self,
        blocks: Sequence[Block],
        names: Sequence[str],
        read: Callable[[Block, Kinds], pa.Table],
        kinds: Mapping[str, Kinds] | None = None,
        written: "Cells | None" = None,
    ) -> None:
        self.blocks = list(blocks)
        self.names = list(names)
        """Of the columns."""
        self.kinds = dict(kinds or {})
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
        found = plain_cells([columns[index] for index in written], self.written.missing)
        for number, index in enumerate(written):
            numbers = found.numbers.get(number)
            if numbers is None:
                columns[index] = plainly(columns[index], self.written.missing)
            else:
                columns[index] = numbers
        return pa.table(columns, names=table.column_names)

    @staticmethod
    def locate_row(block: Block, row: int) -> str:
        """The file, and the row in it, counted from 0."""
        return f"{block.file}: row {block.start + row}"


def open_table(file_set: FileSet, form: Format, reading: Reading, key: str) -> Table:
    """A table out of these files, whose columns must be the same in all. Raises UserError."""
    files = [
        name for name in file_set.files if form == "csv" or name.lower().endswith(ENDINGS[form])
    ] or [*file_set.files]
    blocks: list[Block] = []
    names: list[str] = []
    kinds: dict[str, Kinds] = {}
    delimiters: set[bytes | None] = set()
    missing = missing_words(reading.missing_values)
    for file in files:
        inside = file.removeprefix(file_set.root).strip("/").split("/")[:-1]
        split = next((ALIASES[part.lower()] for part in inside if part.lower() in ALIASES), None)
        schema, rows_of = _contents(file_set, file, form, reading)
        repeated = _repeated(schema.names)
        if repeated is not None:
            raise UserError(_of_repeated(file, repeated, form))
        own = [*schema.names, *_of_folders(inside)]
        if names and set(own) != set(names):
            odd = sorted(set(own) ^ set(names))[0]
            if odd in own:
                has = "has"
            else:
                has = "lacks"
            raise UserError(
                f"{file}: expected the columns of {files[0]}, got others: it {has} '{odd}'. "
                "All parts must have the same columns."
            )
        names = names or own
        delimiters.add((schema.metadata or {}).get(DELIMITER))
        kinds[file] = dict(zip(schema.names, schema.types, strict=True))
        start = 0
        for row_group, rows in rows_of:
            if rows != 0:
                blocks.append(Block(file, row_group, start, rows, split))
            start += rows or 0
    if not blocks:
        raise UserError(
            f"{key}: {files[0] if len(files) == 1 else file_set.shown}: expected rows, got an "
            "empty file."
        )

    def read(block: Block, wanted: Kinds) -> pa.Table:
        table = _read_block(file_set, block, form, reading)
        if form == "csv":
            table = _plain_where(table, wanted, missing)
        table = _as_types(table, {**kinds[block.file], **wanted}, block, reading)
        inside = block.file.removeprefix(file_set.root).strip("/").split("/")[:-1]
        for name, value in _of_folders(inside).items():
            table = table.append_column(name, pa.array([value] * len(table)))
        return table.select(names)

    folders = frozenset(name for name in names if name not in kinds[files[0]])
    if form != "csv":
        return Table(blocks, names, read, kinds, Cells(names=folders))
    # Semicolons are taken where the comma is the decimal sign.
    if len(delimiters) == 1:
        comma = {b",": True, b";": False}.get(delimiters.pop() or b"")
    else:
        comma = None
    notes = (
        ()
        if reading.columns
        else _of_header(files[0], _recent.get(_key_of(file_set, files[0], form, reading)))
    )
    written = Cells(frozenset(names) - folders, missing, folders, comma, notes)
    return Table(blocks, names, read, kinds, written)


def _of_header(file: str, table: pa.Table | None) -> tuple[Note, ...]:
    """A note where the header of a text file looks like a row of data, by some of its columns and
    rows.
    """
    if table is None:
        return ()
    some = table.select(range(min(LOOKED_AT, table.num_columns)))[:LOOKED_AT]
    note = header_note(file, some.to_pydict())
    if note is None:
        return ()
    return (note,)


def _plain_where(table: pa.Table, wanted: Kinds, missing: pa.Array) -> pa.Table:
    """With numbers and dates in the columns that files of other formats have as such."""
    for index, name in enumerate(table.column_names):
        if name in wanted and not is_text(wanted[name]):
            table = table.set_column(index, name, plainly(table.column(index), missing))
    return table


def _of_repeated(file: str, name: str, form: Format) -> str:
    """What is said of a name that two columns have: of a number that there is no header,
    perhaps.
    """
    expected = f"{file}: expected different names of columns, got '{name}' twice."
    if form == "csv" and re.fullmatch(r"[-+.,\deE %]*\d[-+.,\deE %]*", name):
        return f"{expected} Where the file has no header, name its columns in data.columns; else rename one."
    return f"{expected} Rename one, or name the columns of a file without a header in data.columns."


def _repeated(names: Sequence[str]) -> str | None:
    if len(set(names)) == len(names):
        return None
    seen: set[str] = set()
    return next(name for name in names if name in seen or seen.add(name))  # type: ignore[func-returns-value]


def agree(tables: Iterable[Table], may_be_text: Callable[[str], bool]) -> None:
    """Has columns whose types differ between files read as one type that holds the values of all.

    Numbers beside texts are numbers where the texts are written so, and texts where these are codes
    such as 01067 or where they may be. Raises UserError for others.
    """
    tables = list(tables)
    if sum(len(table.kinds) for table in tables) < 2:
        return
    kinds: dict[str, dict[pa.DataType, str]] = {}
    for table in tables:
        for file, own in table.kinds.items():
            for name, kind in own.items():
                kinds.setdefault(name, {}).setdefault(kind, file)
    for name, files in kinds.items():
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


def _number_or_text(name: str, tables: Sequence[Table]) -> pa.DataType | None:
    """The type of a column with numbers in some files and texts in others; None where it cannot be
    told.
    """
    every = {own[name] for table in tables for own in table.kinds.values() if name in own}
    if not all(is_text(kind) or pa.types.is_null(kind) or is_number(kind) for kind in every):
        return None
    columns = [
        table.read(block)[name]
        for table in tables
        for block in table.blocks
        if is_text(table.kinds.get(block.file, {}).get(name, pa.null()))
    ]
    if any(pa.types.is_boolean(kind) or pa.types.is_temporal(kind) for kind in every):
        return None
    if all(numbers_in(column) for column in columns):
        return pa.float64()
    if all(codes_in(column) for column in columns):
        return pa.string()
    return None


def _as_types(table: pa.Table, wanted: Kinds, block: Block, reading: Reading) -> pa.Table:
    """The same columns in these types. Raises UserError for a value that cannot be of the type."""
    columns = table.columns
    for index, field in enumerate(table.schema):
        if field.type == wanted[field.name]:
            continue
        try:
            columns[index] = as_type(columns[index], wanted[field.name], reading.encoding)
        except (pa.ArrowException, UnicodeDecodeError) as error:
            raise UserError(
                f"{block.file}: column '{field.name}': expected {wanted[field.name]} in all rows, "
                f"got others ({reason(error)}). Correct them, or set data.encoding for bytes that "
                "are texts."
            ) from None
    return pa.Table.from_arrays(columns, names=table.column_names)


def _of_folders(folders: Sequence[str]) -> dict[str, str]:
    """Columns that folders named NAME=VALUE stand for."""
    return dict(part.split("=", 1) for part in folders if "=" in part)


def _contents(
    file_set: FileSet, file: str, form: Format, reading: Reading
) -> tuple[pa.Schema, list[tuple[int | None, int | None]]]:
    """Names and plain types of the columns, and (row group, rows) of each block."""
    if form == "parquet":
        try:
            with file_set.fs.open_input_file(file) as stream:
                about = pq.ParquetFile(stream, pre_buffer=has_threads(file_set.fs))
                rows = [about.metadata.row_group(i).num_rows for i in range(about.num_row_groups)]
                return _plain_schema(about, file_set, file, reading), list(enumerate(rows))
        except (pa.ArrowException, OSError) as error:
            raise UserError(
                f"{file}: expected a Parquet file, got something else ({reason(error)}). Correct "
                "data.format or the file."
            ) from None
    table = _read_block(file_set, Block(file), form, reading)
    fields = [field.with_type(plainer(field.type)) for field in table.schema]
    return pa.schema(fields, table.schema.metadata), [(None, len(table))]


def _plain_schema(
    about: pq.ParquetFile, file_set: FileSet, file: str, reading: Reading
) -> pa.Schema:
    """Names and plain types; bytes that are texts in the first row group are texts."""
    try:
        stored = about.schema_arrow
        fields = [field.with_type(plainer(field.type)) for field in stored]
    except UnicodeDecodeError:
        raise UserError(
            f"{file}: expected names of columns in utf8, got others. Write the file again."
        ) from None
    if about.num_row_groups and len({field.name for field in fields}) == len(fields):
        named = [field.name for field in fields if kind_of_bytes(field.type)]
        if named:
            first = about.read_row_group(0, columns=named, use_threads=has_threads(file_set.fs))
        else:
            first = None
        for index, field in enumerate(fields):
            if first is not None and field.name in named:
                values = as_type(first[field.name], pa.binary())
                fields[index] = field.with_type(
                    pa.string() if holds_texts(values, reading.encoding) else pa.binary()
                )
    return pa.schema(fields)


def _read_block(file_set: FileSet, block: Block, form: Format, reading: Reading) -> pa.Table:
    try:
        if form == "parquet":
            with file_set.fs.open_input_file(block.file) as stream:
                threads = has_threads(file_set.fs)
                opened = pq.ParquetFile(stream, pre_buffer=threads)
                return opened.read_row_group(block.row_group, use_threads=threads)
        key = _key_of(file_set, block.file, form, reading)
        found = _recent.get(key)
        if found is not None:
            return found
        return _recent.keep(key, _read_text(file_set, block.file, form, reading))
    except (pa.ArrowException, OSError, EOFError) as error:
        raise UserError(
            f"{block.file}: cannot be read as {form} ({reason(error)}). Correct the file."
        ) from None


class _Recent:
    """The tables that were read last, out of files that have not changed since."""

    def __init__(self) -> None:
        self.tables: dict[Hashable, pa.Table] = {}
        self.lock = Lock()

    def get(self, key: Hashable) -> pa.Table | None:
        return self.tables.get(key)

    def keep(self, key: Hashable, table: pa.Table) -> pa.Table:
        """The same table; the oldest ones are given up where there is no room for it."""
        with self.lock:
            self.tables[key] = table
            while self.tables and sum(one.nbytes for one in self.tables.values()) > RECENT_MB * 1e6:
                del self.tables[next(iter(self.tables))]
        return table


_recent = _Recent()


def _key_of(file_set: FileSet, file: str, form: Format, reading: Reading) -> Hashable:
    info = file_set.fs.get_file_info(file)
    return file, info.size, info.mtime_ns, form, reading


def _read_text(file_set: FileSet, file: str, form: Format, reading: Reading) -> pa.Table:
    content = file_set.read(file)
    if form == "mat":
        return _read_mat(content, file)
    content = uncompressed(content, file, form.upper())
    text = decoded(content, reading.encoding, file)
    del content  # which is as large as the text
    if form == "csv":
        return _read_csv(text, file, reading)
    return read_arff(text, file)


def _read_csv(text: str, file: str, reading: Reading) -> pa.Table:
    """The cells as they are written: all columns are texts."""
    from pyarrow import csv

    if not text.strip():
        raise UserError(f"{file}: expected a header and rows, got an empty file.")
    delimiter = reading.delimiter or delimiter_of(text)
    try:
        first = _first_row(text, delimiter)
        names = list(reading.columns) or first
        if reading.columns and names == first:
            raise UserError(
                f"data.columns: {file}: expected no header, got one of these names. Leave "
                "data.columns away."
            )
        if len(names) != len(first):
            raise UserError(
                f"data.columns: {file}: expected {len(first)} names, as many as there are columns, "
                f"got {len(names)}."
            )
        table = csv.read_csv(
            arrow_stream(text.encode()),
            read_options=csv.ReadOptions(column_names=names if reading.columns else None),
            parse_options=csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            convert_options=csv.ConvertOptions(
                null_values=[],
                strings_can_be_null=False,
                column_types=dict.fromkeys(names, pa.string()),
            ),
        )
    except (pa.ArrowInvalid, csv_module.Error) as error:
        raise UserError(
            f"{file}: cannot be read as csv with the delimiter {delimiter!r} ({reason(error)}). "
            "Correct the row, or set data.delimiter."
        ) from None
    return table.replace_schema_metadata({DELIMITER: delimiter.encode()})


DELIMITER = b"delimiter"
"""In the metadata of a table that was read from a text file."""


def _first_row(text: str, delimiter: str) -> list[str]:
    rows = csv_module.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    return next((row for row in rows if row), [])


def delimiter_of(text: str) -> str:
    """The character between the values of a CSV text: the one that the header and each of the first
    rows have as often.

    What is in quotes does not count.
    """
    sample = text[:SAMPLED]
    lines = re.sub(r'(?:^|(?<=[,;|\t\n\r]))"(?:[^"]|"")*"', '""', sample).splitlines()
    if len(text) > SAMPLED:
        lines = lines[:-1] or lines
    lines = [line for line in lines if line.strip()][:100]
    header, *rows = lines or [""]
    among = [mark for mark in DELIMITERS if mark in header]
    if not among:
        return next(
            (mark for mark in (",", *DELIMITERS) if not any(mark in row for row in rows)), ","
        )
    alike = [mark for mark in among if all(row.count(mark) == header.count(mark) for row in rows)]
    return max(alike or among, key=header.count)


def _read_mat(content: bytes, file: str) -> pa.Table:
    """Cells X and Y with the inputs [N_t, D] and the labels of task t, as columns x0 ..., y (or y0
    ...) and task.
    """
    from scipy.io import loadmat

    if not content.startswith(b"MATLAB 5.0"):
        refuse_others(content, file, "MATLAB cells")
    try:
        cells = {
            name: value
            for name, value in loadmat(io.BytesIO(content)).items()
            if not name.startswith("__")
        }
    except (ValueError, NotImplementedError) as error:
        raise UserError(
            f"{file}: expected a MATLAB file up to version 7, got another ({reason(error)})."
        ) from None
    if not {"X", "Y"} <= set(cells) or any(cells[name].dtype != object for name in "XY"):
        raise UserError(
            f"{file}: expected cells X and Y with one entry a task, got {sorted(cells)}."
        )
    x, y = ([np.asarray(part, np.float64) for part in cells[name].ravel()] for name in "XY")
    y = [part.reshape(len(part), -1) if part.ndim > 1 and len(part) == len(own) else part.reshape(len(own), -1)
         for part, own in zip(y, x, strict=True)]  # fmt: skip
    inputs, labels = np.concatenate(x), np.concatenate(y)
    columns = {f"x{i}": values for i, values in enumerate(inputs.T)}
    columns |= {
        "y" if labels.shape[1] == 1 else f"y{i}": values for i, values in enumerate(labels.T)
    }
    return pa.table({**columns, "task": np.repeat(np.arange(len(x)), [len(part) for part in x])})
