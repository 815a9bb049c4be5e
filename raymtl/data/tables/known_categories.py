"""Values of columns of categories that a run was not trained on."""

import pyarrow as pa
import pyarrow.compute as pc

from raymtl.data.tables.columns import LocateRow, texts
from raymtl.data.tables.settings import FilesConfig
from raymtl.types import UserError

MOST_SHOWN = 8
"""Categories that the error shows."""


def check_categories(source: FilesConfig, table: pa.Table, locate_row: LocateRow) -> None:
    """Raises UserError for a value that a column of categories did not have.

    A column with more than `data.max_categories` values has one number for all rare ones, and may
    have others. A missing value is one of its own everywhere.
    """
    for column in source.found.columns:
        if column.role != "category" or len(column.categories) >= source.max_categories:
            continue
        values = texts(table[column.column])
        known = pc.is_in(values, value_set=pa.array(column.categories, pa.string()))
        unknown = pc.and_(pc.is_valid(values), pc.invert(known))
        if pc.any(unknown).as_py():
            row = pc.index(unknown, True).as_py()
            listed = ", ".join(column.categories[:MOST_SHOWN])
            if len(column.categories) > MOST_SHOWN:
                listed += " ..."
            raise UserError(
                f"{locate_row(row)}, column '{column.column}': expected one of the values that the "
                f"run was trained on ({listed}), got '{values[row].as_py()}'. Correct it, or leave "
                "the cell empty: the value is then missing."
            )
