"""Files as blocks of rows: Parquet, CSV, ARFF and MATLAB cells.

A block is a row group of a Parquet file, or another file as a whole. It is read by itself, so that files larger than
memory can be read in any order.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raymtl.data.files.places import ENDINGS, Place, reason
from raymtl.data.files.schema import Format
from raymtl.data.files.splits import ALIASES
from raymtl.types import UserError


class Block(NamedTuple):
    """Rows that are read together. `side` is the split that their path says, `task` the one task they are for."""

    file: str
    row_group: int | None = None
    start: int = 0
    """Of its rows among those of the file."""
    rows: int | None = None
    side: int | None = None
    task: str | None = None


class Reading(NamedTuple):
    """How text becomes a table."""

    missing_values: tuple[str, ...]
    delimiter: str | None
    encoding: str


class Table:
    """Blocks of rows with the same columns."""

    def __init__(self, blocks: Sequence[Block], names: Sequence[str], read: Callable[[Block], pa.Table]) -> None:
        self.blocks = list(blocks)
        self.names = list(names)
        """Of the columns."""
        self._read = read

    def read(self, block: Block) -> pa.Table:
        """The rows of a block. Raises UserError where the file cannot be read, or has other columns than others."""
        return self._read(block)

    @staticmethod
    def where(block: Block, row: int) -> str:
        """The file, and the row in it, counted from 0."""
        return f"{block.file}: row {block.start + row}"


def open_table(place: Place, form: Format, reading: Reading, key: str) -> Table:
    """A table out of these files, whose columns must be the same in all. Raises UserError."""
    files = [name for name in place.files if form == "csv" or name.lower().endswith(ENDINGS[form])] or [*place.files]
    blocks: list[Block] = []
    names: list[str] = []
    for file in files:
        inside = file.removeprefix(place.root).strip("/").split("/")[:-1]
        side = next((ALIASES[part.lower()] for part in inside if part.lower() in ALIASES), None)
        own, rows_of = _contents(place, file, form, reading)
        repeated = next((name for name in own if own.count(name) > 1), None)
        if repeated is not None:
            raise UserError(f"{file}: expected different names of columns, got '{repeated}' twice. Rename one.")
        own = [*own, *_of_folders(inside)]
        if names and set(own) != set(names):
            odd = sorted(set(own) ^ set(names))[0]
            has = "has" if odd in own else "lacks"
            raise UserError(
                f"{file}: expected the columns of {files[0]}, got others: it {has} '{odd}'. "
                "All parts must have the same columns."
            )
        names = names or own
        start = 0
        for row_group, rows in rows_of:
            if rows != 0:
                blocks.append(Block(file, row_group, start, rows, side))
            start += rows or 0
    if not blocks:
        raise UserError(f"{key}: {files[0] if len(files) == 1 else place.shown}: expected rows, got an empty file.")

    def read(block: Block) -> pa.Table:
        table = _read_block(place, block, form, reading)
        inside = block.file.removeprefix(place.root).strip("/").split("/")[:-1]
        for name, value in _of_folders(inside).items():
            table = table.append_column(name, pa.array([value] * len(table)))
        return table.select(names)

    return Table(blocks, names, read)


def _of_folders(folders: Sequence[str]) -> dict[str, str]:
    """Columns that folders named NAME=VALUE stand for."""
    return dict(part.split("=", 1) for part in folders if "=" in part)


def _contents(
    place: Place, file: str, form: Format, reading: Reading
) -> tuple[list[str], list[tuple[int | None, int | None]]]:
    """Names of the columns, and (row group, rows) of each block; rows are None where only reading would tell."""
    if form == "parquet":
        try:
            with place.fs.open_input_file(file) as stream:
                about = pq.ParquetFile(stream)
                rows = [about.metadata.row_group(i).num_rows for i in range(about.num_row_groups)]
                return list(about.schema_arrow.names), list(enumerate(rows))
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{file}: expected a Parquet file, got something else ({reason(error)}).") from None
    table = _read_block(place, Block(file), form, reading)
    return table.column_names, [(None, len(table))]


def _read_block(place: Place, block: Block, form: Format, reading: Reading) -> pa.Table:
    try:
        if form == "parquet":
            with place.fs.open_input_file(block.file) as stream:
                return pq.ParquetFile(stream).read_row_group(block.row_group)
        if form == "csv":
            return _read_csv(place, block.file, reading)
        content = place.read(block.file)
        return _read_arff(content, block.file) if form == "arff" else _read_mat(content, block.file)
    except (pa.ArrowException, OSError, EOFError) as error:
        raise UserError(f"{block.file}: cannot be read as {form} ({reason(error)}). Correct the file.") from None


def _read_csv(place: Place, file: str, reading: Reading) -> pa.Table:
    from pyarrow import csv

    with place.fs.open_input_stream(file) as stream:  # by its ending it is decompressed
        content = stream.read()
    if not content.strip():
        raise UserError(f"{file}: expected a header and rows, got an empty file.")
    head = content[: content.find(b"\n") if b"\n" in content else None].decode(reading.encoding, "replace")
    delimiter = reading.delimiter or max(",\t;|", key=head.count)
    table = csv.read_csv(
        pa.BufferReader(content),
        read_options=csv.ReadOptions(encoding=reading.encoding),
        parse_options=csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        convert_options=csv.ConvertOptions(
            null_values=list(reading.missing_values), strings_can_be_null=True, quoted_strings_can_be_null=True
        ),
    )
    for field in table.schema:
        if pa.types.is_binary(field.type):  # what pyarrow makes of text that it cannot decode
            raise UserError(
                f"{file}: column '{field.name}': expected text in {reading.encoding}, got another encoding. "
                "Set data.encoding, such as latin1."
            )
    return table


def _read_arff(content: bytes, file: str) -> pa.Table:
    import gzip
    import io

    from scipy.io import arff

    text = (gzip.decompress(content) if file.endswith(".gz") else content).decode()
    try:
        rows, about = arff.loadarff(io.StringIO(text))
    except (arff.ArffError, NotImplementedError, ValueError, StopIteration) as error:
        raise UserError(f"{file}: expected an ARFF file, got something else ({reason(error)}).") from None
    columns = {}
    for name, kind in zip(about.names(), about.types(), strict=True):
        values = rows[name]
        if kind == "nominal":
            columns[name] = pa.array([None if v == b"?" else v.decode() for v in values])
        else:
            columns[name] = pa.array(values, from_pandas=True)
    return pa.table(columns)


def _read_mat(content: bytes, file: str) -> pa.Table:
    """Cells X and Y with the inputs [N_t, D] and the labels of task t, as columns x0 ..., y (or y0 ...) and task."""
    import io

    from scipy.io import loadmat

    try:
        cells = {name: value for name, value in loadmat(io.BytesIO(content)).items() if not name.startswith("__")}
    except (ValueError, NotImplementedError) as error:
        raise UserError(f"{file}: expected a MATLAB file up to version 7, got another ({reason(error)}).") from None
    if not {"X", "Y"} <= set(cells) or any(cells[name].dtype != object for name in "XY"):
        raise UserError(f"{file}: expected cells X and Y with one entry a task, got {sorted(cells)}.")
    x, y = ([np.asarray(part, np.float64) for part in cells[name].ravel()] for name in "XY")
    y = [part.reshape(len(part), -1) if part.ndim > 1 and len(part) == len(own) else part.reshape(len(own), -1)
         for part, own in zip(y, x, strict=True)]  # fmt: skip
    inputs, labels = np.concatenate(x), np.concatenate(y)
    columns = {f"x{i}": values for i, values in enumerate(inputs.T)}
    columns |= {"y" if labels.shape[1] == 1 else f"y{i}": values for i, values in enumerate(labels.T)}
    return pa.table({**columns, "task": np.repeat(np.arange(len(x)), [len(part) for part in x])})
