"""Which rows of the user's files something is said of: file, row, and the name of the picture or
the key.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from raymtl.data.tables.columns import is_text, plain, texts
from raymtl.data.tables.dataset import TableDataset, TableRows
from raymtl.data.tables.decode import picture_of
from raymtl.data.tables.settings import FilesConfig

PICTURE = "picture"
NONE = np.zeros(0, np.int64)


class RowOrigins(NamedTuple):
    """Rows of files, and what they are called there."""

    rows: np.ndarray
    """[N] int64: in their files, counted from 0."""
    files: tuple[str, ...] | None = None
    """Of each row; None where all are of one file."""
    named: str | None = None
    """The column that names the rows: `picture`, or the key; None without one."""
    names: tuple[str | None, ...] = ()
    shapes: np.ndarray | None = None
    """[N, 2] int64: height and width that the pictures had, where the inputs are pictures."""

    def at(self, chosen: np.ndarray) -> "RowOrigins":
        """Those with these numbers, [M] of integers or [N] of bool."""
        if chosen.dtype == bool and chosen.all():
            return self
        numbers = np.arange(len(self.rows))[chosen]
        if self.files is None:
            files = None
        else:
            files = tuple(self.files[i] for i in numbers)
        if self.names:
            names = tuple(self.names[i] for i in numbers)
        else:
            names = ()
        if self.shapes is None:
            shapes = None
        else:
            shapes = self.shapes[numbers]
        return RowOrigins(self.rows[numbers], files, self.named, names, shapes)


def origins_of(
    source: FilesConfig, dataset: TableDataset, number: int, rows: TableRows, shapes: np.ndarray
) -> RowOrigins:
    """The rows of a block, whose pictures had these shapes [N, 2]."""
    block = dataset.blocks[number][1]
    size = len(rows.table)
    column, names = None, ()
    naming = _naming_column(source, rows.table)
    if naming is not None:
        column = naming.shown
        names = tuple(texts(rows.table[naming.column]).to_pylist())
    return RowOrigins(
        block.start + np.arange(size),
        (block.file,) * size,
        column,
        names,
        shapes if source.is_image else None,
    )


def together(parts: Sequence[RowOrigins]) -> RowOrigins:
    """The rows of several blocks, one after the other; without their file where it is the only
    one.
    """
    files = tuple(file for part in parts for file in part.files or ())
    shapes = [part.shapes for part in parts if part.shapes is not None]
    return RowOrigins(
        np.concatenate([part.rows for part in parts]),
        files if len(set(files)) > 1 else None,
        parts[0].named,
        tuple(name for part in parts for name in part.names),
        np.concatenate(shapes) if shapes else None,
    )


class _NamingColumn(NamedTuple):
    """The column that names rows."""

    shown: str
    """What it is called in the predictions."""
    column: str
    """What it is called in the file."""


def _naming_column(source: FilesConfig, table: pa.Table) -> _NamingColumn | None:
    """The column that names rows; None without one."""
    if source.is_image:
        column = source.found.columns[0].column
        if is_text(plain(table[column]).type):
            return _NamingColumn(PICTURE, column)
    key = source.key or source.split.key
    if key is None or key not in table.column_names:
        return None
    return _NamingColumn(key, key)


def held_out(source: FilesConfig, rows: np.ndarray, *, shapes: bool = True) -> RowOrigins | None:
    """The rows with these numbers among all of the source's files; None where it is streamed and
    they are not known.

    With the `shapes` of their pictures, which takes opening them.
    """
    if source.found.pool is not None:
        return None
    dataset = TableDataset(source)
    starts = np.cumsum([0] + [block.rows or 0 for _, block in dataset.blocks])
    block_of_row = np.searchsorted(starts, rows, side="right") - 1
    parts = []
    for number in np.unique(block_of_row).tolist():
        inside = rows[block_of_row == number] - starts[number]
        of_block = dataset.read(number)
        opened = NONE
        if shapes:
            opened = inside
        of_pictures = _shapes(source, dataset, number, of_block, opened)
        origins = origins_of(source, dataset, number, of_block, of_pictures)
        if not shapes:
            origins = origins._replace(shapes=None)
        parts.append(origins.at(inside))
    order = np.argsort(block_of_row, kind="stable")  # of the rows as they stand in the parts
    return together(parts).at(np.argsort(order))


def _shapes(
    source: FilesConfig, dataset: TableDataset, number: int, rows: TableRows, inside: np.ndarray
) -> np.ndarray:
    """[N, 2], of the pictures in the rows `inside` a block."""
    shapes = np.zeros((len(rows.table), 2), np.int64)
    if source.is_image:
        reads = dataset.contents(number, rows.table[source.found.columns[0].column])
        for row in inside.tolist():
            picture = picture_of(reads[row]())
            shapes[row] = picture.height, picture.width
    return shapes
