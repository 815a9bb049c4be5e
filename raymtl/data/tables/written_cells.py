"""Columns of text files, read in the forms that their cells are written in."""

from collections.abc import Collection, Mapping, Sequence

import pyarrow as pa

from raymtl.data.tables.blocks import Cells
from raymtl.data.tables.cells import formed, missing_words, plainly
from raymtl.data.tables.columns import LocateRow, is_text
from raymtl.data.tables.plain_cells import plain_cells
from raymtl.data.tables.schema import TextForm


def cells_of_column(tables: Sequence[Cells], name: str, kept: Collection[str] = ()) -> Cells:
    """How the cells of a column are written, those that are kept counting as values."""
    names = frozenset().union(*(table.names for table in tables))
    cells = next((table for table in tables if name in table.columns), Cells())
    if not kept:
        return cells._replace(names=names)
    missing = missing_words(word for word in cells.missing.to_pylist() if word not in kept)
    return cells._replace(names=names, missing=missing)


def with_plain_keys(table: pa.Table, key: str, cells: Cells) -> pa.Table:
    """The table with keys as anybody would read them, so that 7 and 7.0 are one."""
    if key not in cells.columns or key not in table.column_names:
        return table
    index = table.column_names.index(key)
    return table.set_column(index, key, plainly(table[key], cells.missing))


def read_columns(
    table: pa.Table,
    cells: Mapping[str, Cells],
    forms: Mapping[str, TextForm],
    locate_row: LocateRow,
) -> pa.Table:
    """The table with these columns in their forms, plain numbers all at once."""
    columns = dict(zip(table.column_names, table.columns, strict=True))
    plain = [name for name in cells if name not in forms and is_text(columns[name].type)]
    done: set[str] = set()
    if plain:
        plain_columns = plain_cells([columns[name] for name in plain], cells[plain[0]].missing)
        for index, values in plain_columns.numbers.items():
            columns[plain[index]] = pa.chunked_array([values])
            done.add(plain[index])
    for name in cells.keys() - done:
        columns[name] = read_column(columns[name], name, forms.get(name), cells[name], locate_row)
    return pa.table(columns)


def read_column(
    column: pa.ChunkedArray, name: str, form: TextForm | None, cells: Cells, locate_row: LocateRow
) -> pa.ChunkedArray:
    """A column in its form, or where it has none as anybody would read the cells of text files."""
    if name in cells.names or not is_text(column.type):
        return column
    if form is not None:
        values = formed(
            column, form, cells.missing, lambda row: f"{locate_row(row)}, column '{name}'"
        )
    elif name in cells.columns:
        values = plainly(column, cells.missing)
    else:
        values = column
    if isinstance(values, pa.ChunkedArray):
        return values
    return pa.chunked_array([values])
