"""Predictions as what an answer says of each row."""

from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from raymtl.types import Task


def plain_rows(tasks: Iterable[Task], table: pa.Table) -> list[dict[str, Any]]:
    """The columns of predictions.parquet on what is predicted; `TASK.after` is called `TASK`."""
    names = {}
    for task in tasks:
        for column in table.column_names:
            part = column.removeprefix(f"{task.name}.")
            if part == column:
                continue
            if part == "after":
                names[column] = task.name
            elif part.startswith(("after.", "probability", "classes")):
                names[column] = f"{task.name}.{part.removeprefix('after.')}"
    predicted = table.select(list(names)).rename_columns(list(names.values()))
    rows: list[dict[str, Any]] = predicted.to_pylist()
    return rows
