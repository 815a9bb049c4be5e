"""Rows of a request as files in the form of the run's own, which the run's readers then read."""

import base64
import binascii
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raymtl.data import Source, files_of
from raymtl.serving.messages import Rows
from raymtl.types import UserError

PICTURE = "picture"
"""The cell with a file of a picture in base64, of runs on pictures of their user's."""


def write_rows(rows: Rows, source: Source, folder: Path) -> Path:
    """Writes the rows below an empty folder; returns what is to be read: a Parquet file, or the
    folder with pictures and a table of their labels.

    Raises UserError for cells that no column can hold.
    """
    columns = list(dict.fromkeys(name for row in rows for name in row))
    files = files_of(source)
    if files is None or not files.is_image:
        path = folder / "rows.parquet"
        pq.write_table(_table(rows, columns), path)
        return path
    names = [f"{number:06}.png" for number in range(len(rows))]
    for number, (name, row) in enumerate(zip(names, rows, strict=True)):
        (folder / name).write_bytes(_picture(number, row))
    labels = [name for name in columns if name != PICTURE]
    if labels:
        table = _table(rows, labels).add_column(0, PICTURE, pa.array(names))
        pq.write_table(table, folder / "labels.parquet")
    return folder


def _picture(number: int, row: Any) -> bytes:
    text = row.get(PICTURE)
    if isinstance(text, str):
        try:
            return base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            pass
    raise UserError(
        f"rows: row {number}: expected '{PICTURE}' with a file of a picture in base64, got none."
    )


def _table(rows: Rows, columns: Sequence[str]) -> pa.Table:
    arrays = {name: _column(name, [row.get(name) for row in rows]) for name in columns}
    return pa.table(arrays)


def _column(name: str, cells: Sequence[Any]) -> pa.Array:
    try:
        return pa.array(cells)
    except (pa.ArrowException, OverflowError):
        raise UserError(
            f"rows: column '{name}': expected cells of one type, numbers or texts, got a mixture."
        ) from None


@contextmanager
def refusing_rows(folder: Path) -> Iterator[Path]:
    """Speaks of `rows` where an error names a file below the folder, which no user knows."""
    try:
        yield folder
    except UserError as error:
        inside = re.compile(rf"{re.escape(str(folder))}(/rows\.parquet|/labels\.parquet)?")
        raise UserError(inside.sub("rows", str(error))) from None
