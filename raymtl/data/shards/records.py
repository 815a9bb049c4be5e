"""Arrays as columns of Parquet: the values of a row are one binary of a fixed size.

Inputs and large labels (maps) are columns of their own. All other labels and their masks share the
column `labels`, so a data set with a thousand tasks has as many columns as one with a single task.
The types and shapes are in the schema's metadata.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from raymtl.data.base import Arrays
from raymtl.storage import strict_json

LABELS = "labels"
LARGE = 256
"""Bytes of a row's label from which it is a column of its own."""
METADATA = b"raymtl"

Layout = Mapping[str, np.dtype[Any]]
"""Column -> the fields of a row in it."""


def layout_of(arrays: Arrays) -> Layout:
    """The columns for these arrays [N, ...]."""
    columns: dict[str, list[tuple[str, str, tuple[int, ...]]]] = {}
    for name, values in arrays.items():
        column = LABELS
        if name == "inputs" or values[:1].nbytes >= LARGE:
            column = name
        field = (name, values.dtype.newbyteorder("<").str, values.shape[1:])
        columns.setdefault(column, []).append(field)
    return {column: np.dtype(fields) for column, fields in columns.items()}


def columns_of(arrays: Arrays, layout: Layout) -> dict[str, pa.Array]:
    """The arrays [N, ...] as columns of binaries of a fixed size."""
    number = len(arrays["inputs"])
    columns = {}
    for column, dtype in layout.items():
        records = np.empty(number, dtype)
        for name in dtype.names or ():
            records[name] = arrays[name]
        _, content = pa.array(records.view(np.uint8).reshape(-1)).buffers()
        kind = pa.binary(dtype.itemsize)
        columns[column] = pa.Array.from_buffers(kind, number, [None, content])
    return columns


def schema_metadata(layout: Layout) -> dict[bytes, bytes]:
    """The layout as it is written in a file."""
    described = {column: _description(dtype) for column, dtype in layout.items()}
    return {METADATA: strict_json.dumps(described).encode()}


def _description(dtype: np.dtype[Any]) -> list[tuple[str, str, list[int]]]:
    fields: Mapping[str, tuple[Any, ...]] = dtype.fields or {}
    description = []
    for name in dtype.names or ():
        of_field = fields[name][0]
        description.append((name, of_field.base.str, list(of_field.shape)))
    return description


def read_layout(schema: pa.Schema) -> Layout:
    """The layout that a file was written with. Raises ValueError for a file without one."""
    described = (schema.metadata or {}).get(METADATA)
    if described is None:
        raise ValueError("no description of its columns")
    try:
        return {
            column: np.dtype([(name, kind, tuple(shape)) for name, kind, shape in fields])
            for column, fields in json.loads(described).items()
        }
    except (AttributeError, TypeError) as error:
        raise ValueError(f"a damaged description of its columns ({error})") from None


def columns_with(layout: Layout, names: Sequence[str]) -> list[str]:
    """The columns that these arrays are in."""
    return [column for column, dtype in layout.items() if set(dtype.names or ()) & set(names)]


def arrays_in(table: pa.Table, layout: Layout, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The arrays [N, ...] with these names. Raises ValueError for one that no column holds."""
    arrays = {}
    for column in columns_with(layout, names):
        records = _records(table[column], layout[column])
        for name in records.dtype.names or ():
            if name in names:
                arrays[name] = np.ascontiguousarray(records[name])
    lacking = set(names) - set(arrays)
    if lacking:
        raise ValueError(f"no column with {min(lacking)}")
    return arrays


def _records(column: pa.ChunkedArray, dtype: np.dtype[Any]) -> np.ndarray:
    parts = [
        np.frombuffer(chunk.buffers()[1], dtype, len(chunk), chunk.offset * dtype.itemsize)
        for chunk in column.chunks
    ]
    if not parts:
        return np.empty(0, dtype)
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts)
