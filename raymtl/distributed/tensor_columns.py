"""Tensors in the columns of a Dataset of Ray Data, as what files hold: pictures and lists."""

import io
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
from PIL import Image


def without_tensors(table: pa.Table) -> pa.Table:
    """The same rows; tensors of uint8 and shape [H, W] or [H, W, 1, 3 or 4] are pictures in PNG,
    and other tensors are lists.
    """
    columns = []
    for column in table.columns:
        if isinstance(column.type, pa.ExtensionType):
            arrays = [array for chunk in column.chunks for array in _arrays(chunk)]
            columns.append(_pictures_or_lists(arrays))
        else:
            columns.append(column)
    return pa.table(columns, table.column_names)


def _arrays(chunk: pa.ExtensionArray) -> Iterator[np.ndarray | None]:
    is_there = chunk.is_valid().to_pylist()
    for there, array in zip(is_there, chunk.to_numpy(zero_copy_only=False), strict=True):
        if there:
            yield array
        else:
            yield None


def _pictures_or_lists(arrays: Sequence[np.ndarray | None]) -> pa.Array:
    if all(array is None or _is_picture(array) for array in arrays):
        return pa.array([None if array is None else _png(array) for array in arrays], pa.binary())
    return pa.array([None if array is None else array.tolist() for array in arrays])


def _is_picture(array: np.ndarray) -> bool:
    if array.dtype != np.uint8:
        return False
    return array.ndim == 2 or (array.ndim == 3 and array.shape[-1] in (1, 3, 4))


def _png(array: np.ndarray) -> bytes:
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    content = io.BytesIO()
    Image.fromarray(array).save(content, "png", compress_level=1)
    return content.getvalue()
