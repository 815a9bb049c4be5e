"""Tables of labels joined with the rows they are about: by the names of pictures, or by a key."""

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from raymtl.data.tables.blocks import Cells
from raymtl.data.tables.columns import texts
from raymtl.data.tables.listing import key_of
from raymtl.types import UserError

OF_TABLE = " (table)"
"""Stands behind the name of a column of the table where the pictures have one of that name."""


class LabelTable(NamedTuple):
    """The table of labels beside the pictures of a folder."""

    file: str
    rows: pa.Table
    cells: Cells
    """How the cells of its columns are written."""


class _PictureColumn(NamedTuple):
    """The column of a table that names the most pictures."""

    num_named: int
    name: str
    pictures: Sequence[str]
    """What every picture is called in it."""


def join_pictures(
    table: pa.Table, paths: Sequence[str], labels: LabelTable, labels_in: Collection[str]
) -> tuple[pa.Table, list[str]]:
    """The pictures joined with their labels, by the column that names most of the pictures and is
    no label; and what that column names beside pictures.
    """
    column = _picture_column(paths, labels, labels_in)
    row_of = _rows_by_picture(labels, column.name)
    rows = pa.array([row_of.get(picture) for picture in column.pictures], pa.int64())
    for name in labels.rows.column_names:
        if name == column.name:
            continue
        joined_name = name
        if name in table.column_names:
            joined_name = f"{name}{OF_TABLE}"
        table = table.append_column(joined_name, labels.rows[name].take(rows))
    return table, sorted(set(row_of) - set(column.pictures))


def _picture_column(
    paths: Sequence[str], labels: LabelTable, labels_in: Collection[str]
) -> _PictureColumn:
    """The column that names the most pictures. Raises UserError where none names any."""
    keys = [key_of(path) for path in paths]
    best = _PictureColumn(0, "", [])
    candidates = [name for name in labels.rows.column_names if name not in labels_in]
    for name_of in _WAYS_TO_NAME:
        pictures = [name_of(key) for key in keys]
        if len(set(pictures)) < len(pictures):
            continue  # names that two pictures have say nothing
        for name in candidates:
            values = texts(labels.rows[name]).drop_null().to_pylist()
            num_named = len({key_of(value) for value in values} & set(pictures))
            if num_named > best.num_named:
                best = _PictureColumn(num_named, name, pictures)
    if not best.num_named:
        raise UserError(
            f"{labels.file}: expected a column with the names of the pictures beside it, got "
            f"{labels.rows.column_names}. Write the path of each picture below the folder."
        )
    return best


_WAYS_TO_NAME: tuple[Callable[[str], str], ...] = (
    lambda path: path,
    lambda path: path.rpartition("/")[2],
    lambda path: path.rpartition(".")[0],
    lambda path: path.rpartition("/")[2].rpartition(".")[0],
)
"""A table names pictures by their paths or by their names, with endings or without."""


def _rows_by_picture(labels: LabelTable, name: str) -> dict[str, int]:
    """The row of the table that is about each picture. Raises UserError where two rows are."""
    row_of: dict[str, int] = {}
    for row, value in enumerate(texts(labels.rows[name]).to_pylist()):
        if value is None:
            continue
        picture = key_of(value)
        if picture in row_of:
            raise UserError(
                f"{labels.file}: row {row}, column '{name}': expected each picture once, got "
                f"'{picture}' twice."
            )
        row_of[picture] = row
    return row_of


def joined(
    table: pa.Table, labels: pa.Table, key: str, source: str
) -> Iterator[tuple[str, pa.ChunkedArray]]:
    """The columns of `labels` for the rows of `table`, by the column `key` of both; null where
    there is none.
    """
    keys = texts(labels[key])
    if len(pc.unique(keys)) < len(keys):
        row = next(
            row for row, value in enumerate(keys.to_pylist()) if value in keys[:row].to_pylist()
        )
        raise UserError(
            f"{source}: row {row}, column '{key}': expected each key once, got "
            f"'{keys[row].as_py()}' twice."
        )
    rows = pc.index_in(texts(table[key]), value_set=keys)
    for name in labels.column_names:
        if name != key:
            yield name, labels[name].take(rows)
