"""Files as blocks of rows: Parquet, Arrow, WebDataset, CSV, ARFF and MATLAB cells.

A block is a row group of a Parquet file, a batch of an Arrow file, some samples of a WebDataset, or
another file as a whole. It is read by itself, so that files larger than memory can be read in any
order.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import pyarrow as pa

from raymtl.data.tables.arff import read_arff
from raymtl.data.tables.arrow_files import ArrowFiles, without_caches
from raymtl.data.tables.blocks import Block, BlockFormat, Cells, ColumnTypes, Reading, Table
from raymtl.data.tables.cells import missing_words, plainly
from raymtl.data.tables.columns import is_text
from raymtl.data.tables.contents import decoded, uncompressed
from raymtl.data.tables.csv_pieces import can_be_cut, cut, read_piece
from raymtl.data.tables.delimited import DELIMITER, read_csv
from raymtl.data.tables.header import header_note
from raymtl.data.tables.matlab import read_mat
from raymtl.data.tables.parquet import Parquet
from raymtl.data.tables.paths import ENDINGS, FileSet, file_key, reason
from raymtl.data.tables.schema import Format
from raymtl.data.tables.splits import ALIASES
from raymtl.data.tables.stored import as_type, plainer
from raymtl.data.tables.table_cache import RecentTables
from raymtl.data.tables.webdataset import WebDataset
from raymtl.storage.notes import Note
from raymtl.types import UserError

IN_BLOCKS: Mapping[Format, BlockFormat] = {
    "parquet": Parquet(),
    "arrow": ArrowFiles(),
    "webdataset": WebDataset(),
}
"""Formats whose files consist of several blocks."""
LOOKED_AT = 100  # columns, and rows, that tell whether a header is one


def open_table(file_set: FileSet, form: Format, reading: Reading, key: str) -> Table:
    """A table out of these files, whose columns must be the same in all. Raises UserError."""
    files = [
        name for name in file_set.files if form == "csv" or name.lower().endswith(ENDINGS[form])
    ] or [*file_set.files]
    if form == "arrow":
        files = without_caches(files)
    opened = _opened(files, _Source(file_set, form, reading))
    if not opened.blocks:
        shown = file_set.shown
        if len(files) == 1:
            shown = files[0]
        raise UserError(f"{key}: {shown}: expected rows, got an empty file.")
    missing = missing_words(reading.missing_values)
    folders = frozenset(name for name in opened.names if name not in opened.types[files[0]])
    written = Cells(names=folders)
    if form == "csv":
        notes: tuple[Note, ...] = ()
        if not reading.columns:
            notes = _of_header(files[0], _recent.get(file_key(file_set, files[0], form, reading)))
        columns = frozenset(opened.names) - folders
        written = Cells(columns, missing, folders, _commas_divide(opened.delimiters), notes)

    def read(block: Block, wanted: ColumnTypes) -> pa.Table:
        table = _read_block(file_set, block, form, reading)
        if form == "csv":
            table = _plain_where(table, wanted, missing)
        table = _as_types(table, {**opened.types[block.file], **wanted}, block, reading)
        for name, value in _of_folders(_folders_of(file_set, block.file)).items():
            table = table.append_column(name, pa.array([value] * len(table)))
        return table.select(opened.names)

    return Table(opened.blocks, opened.names, read, opened.types, written)


class _Source(NamedTuple):
    """Files of one format, and how they are read."""

    file_set: FileSet
    form: Format
    reading: Reading


class _Opened(NamedTuple):
    """What was found in the files of a table, before their rows are read."""

    blocks: list[Block]
    names: list[str]
    """The names of the columns."""
    types: dict[str, ColumnTypes]
    """The types of the columns of each file."""
    delimiters: set[bytes | None]


def _opened(files: Sequence[str], source: _Source) -> _Opened:
    """The blocks and columns of these files. Raises UserError where columns differ."""
    opened = _Opened([], [], {}, set())
    for file in files:
        folders = _folders_of(source.file_set, file)
        schema, blocks = _contents(source, file)
        repeated = _repeated(schema.names)
        if repeated is not None:
            raise UserError(_of_repeated(file, repeated, source.form))
        names = [*schema.names, *_of_folders(folders)]
        if opened.names:
            _check_columns(file, names, files[0], opened.names)
        else:
            opened.names.extend(names)
        opened.delimiters.add((schema.metadata or {}).get(DELIMITER))
        opened.types[file] = dict(zip(schema.names, schema.types, strict=True))
        split = next((ALIASES[part.lower()] for part in folders if part.lower() in ALIASES), None)
        start = 0
        for block in blocks:
            if block.rows != 0:
                opened.blocks.append(block._replace(start=start, split=split))
            start += block.rows or 0
    return opened


def _check_columns(file: str, names: Sequence[str], first: str, expected: Sequence[str]) -> None:
    """Raises UserError where a file has other columns than the first one."""
    odd = sorted(set(names) ^ set(expected))
    if not odd:
        return
    if odd[0] in names:
        has = "has"
    else:
        has = "lacks"
    raise UserError(
        f"{file}: expected the columns of {first}, got others: it {has} '{odd[0]}'. "
        "All parts must have the same columns."
    )


def _folders_of(file_set: FileSet, file: str) -> list[str]:
    """The folders that a file is in, below the root of the file set."""
    return file.removeprefix(file_set.root).strip("/").split("/")[:-1]


def _commas_divide(delimiters: Collection[bytes | None]) -> bool | None:
    """Whether commas stand between the cells of text files; None where that is open.

    Semicolons are taken where the comma is the decimal sign.
    """
    if len(delimiters) != 1:
        return None
    (delimiter,) = delimiters
    return {b",": True, b";": False}.get(delimiter or b"")


def _of_header(file: str, table: pa.Table | None) -> tuple[Note, ...]:
    """A note where the header of a text file looks like a row of data, by some of its columns and
    rows.
    """
    if table is None:
        return ()
    sample = table.select(range(min(LOOKED_AT, table.num_columns)))[:LOOKED_AT]
    note = header_note(file, sample.to_pydict())
    if note is None:
        return ()
    return (note,)


def _plain_where(table: pa.Table, wanted: ColumnTypes, missing: pa.Array) -> pa.Table:
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
        return (
            f"{expected} Where the file has no header, name its columns in data.columns; else "
            "rename one."
        )
    return f"{expected} Rename one, or name the columns of a file without a header in data.columns."


def _repeated(names: Sequence[str]) -> str | None:
    """The first name that stands among them twice; None where each stands there once."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def _as_types(table: pa.Table, wanted: ColumnTypes, block: Block, reading: Reading) -> pa.Table:
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


def _contents(source: _Source, file: str) -> tuple[pa.Schema, list[Block]]:
    """Names and plain types of the columns, and the blocks without the numbers of their rows."""
    file_set, form, reading = source
    if form in IN_BLOCKS:
        try:
            schema, rows_of = IN_BLOCKS[form].contents(file_set, file, reading)
        except (pa.ArrowException, OSError, EOFError) as error:
            raise UserError(
                f"{file}: expected {IN_BLOCKS[form].described}, got something else "
                f"({reason(error)}). Correct data.format or the file."
            ) from None
        return schema, [Block(file, row_group, rows=rows) for row_group, rows in rows_of]
    if form == "csv" and can_be_cut(file_set, file, reading):
        return cut(file_set, file, reading)
    table = _read_block(file_set, Block(file), form, reading)
    fields = [field.with_type(plainer(field.type)) for field in table.schema]
    return pa.schema(fields, table.schema.metadata), [Block(file, rows=len(table))]


def _read_block(file_set: FileSet, block: Block, form: Format, reading: Reading) -> pa.Table:
    try:
        if form in IN_BLOCKS:
            return IN_BLOCKS[form].read(file_set, block)
        if block.span is not None:
            return read_piece(file_set, block, reading)
        key = file_key(file_set, block.file, form, reading)
        recent = _recent.get(key)
        if recent is not None:
            return recent
        return _recent.add(key, _read_text(file_set, block.file, form, reading))
    except (pa.ArrowException, OSError, EOFError) as error:
        raise UserError(
            f"{block.file}: cannot be read as {form} ({reason(error)}). Correct the file."
        ) from None


_recent = RecentTables()


def _read_text(file_set: FileSet, file: str, form: Format, reading: Reading) -> pa.Table:
    content = file_set.read(file)
    if form == "mat":
        return read_mat(content, file)
    content = uncompressed(content, file, form.upper())
    text = decoded(content, reading.encoding, file)
    del content  # which is as large as the text
    if form == "csv":
        return read_csv(text, file, reading)
    return read_arff(text, file)
