"""Columns of Arrow tables: which role they have, and how they become numbers."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raymtl.types import UserError

SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp", ".avif", ".jp2"),
    *(".tif", ".tiff", ".tga", ".ppm", ".pgm", ".pbm", ".pnm"),
)
"""Endings of pictures that Pillow reads."""
DAY_US = 86_400e6

LocateRow = Callable[[int], str]
"""Row of the table at hand -> file and row, as they are told to the user."""


def is_number(kind: pa.DataType) -> bool:
    """Whether values of the type can be computed with: moments in time are days, spans of time
    seconds.
    """
    tests = ("is_integer", "is_floating", "is_decimal", "is_boolean", "is_temporal")
    return any(getattr(pa.types, test)(kind) for test in tests)


def is_text(kind: pa.DataType) -> bool:
    """Whether values of the type are strings."""
    return any(
        getattr(pa.types, f"is_{name}")(kind) for name in ("string", "large_string", "string_view")
    )


def is_list(kind: pa.DataType) -> bool:
    """Whether values of the type are lists."""
    return any(
        getattr(pa.types, f"is_{name}")(kind) for name in ("list", "large_list", "fixed_size_list")
    )


def is_bytes(kind: pa.DataType) -> bool:
    """Whether values of the type are the contents of files: bytes, or a struct with a field
    `bytes`.
    """
    if pa.types.is_struct(kind):
        return bool(kind.get_field_index("bytes") >= 0)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def plain(column: pa.ChunkedArray) -> pa.Array:
    """One array, of the values themselves where they were stored by a dictionary."""
    if isinstance(column, pa.ChunkedArray):
        whole = column.combine_chunks()
    else:
        whole = column
    if isinstance(whole, pa.ChunkedArray):  # an empty one stays chunked
        if whole.num_chunks:
            whole = pa.concat_arrays(whole.chunks)
        else:
            whole = pa.array([], whole.type)
    if pa.types.is_dictionary(whole.type):
        whole = whole.dictionary_decode()
    return whole


def texts(column: pa.ChunkedArray) -> pa.Array:
    """Every value as text, with null for what is missing, the empty string and nan among it.

    Whole numbers are without a point, whatever type they are stored in.
    """
    values = plain(column)
    if pa.types.is_floating(values.type):
        values = pc.if_else(pc.is_nan(values), None, values)
        whole = pc.and_(pc.less(pc.abs(values), 1e15), pc.equal(values, pc.round(values)))
        as_whole = pc.cast(
            pc.cast(pc.if_else(whole, values, 0), pa.int64(), safe=False), pa.string()
        )
        values = pc.if_else(whole, as_whole, pc.cast(values, pa.string()))
    if is_bytes(values.type) or pa.types.is_nested(values.type):
        values = pa.array([None if v is None else repr(v) for v in values.to_pylist()], pa.string())
    text = pc.utf8_trim_whitespace(pc.cast(values, pa.string()))
    return pc.if_else(pc.equal(text, ""), None, text)


def numbers(column: pa.ChunkedArray, name: str, locate_row: LocateRow) -> np.ndarray:
    """Every value as float64 [N], nan for what is missing. Raises UserError for text that is no
    number.
    """
    values = plain(column)
    kind = values.type
    if is_text(kind):
        values = _numbers_in_texts(texts(values), name, locate_row)
    elif pa.types.is_temporal(kind):
        values = _numbers_of_times(values)
    elif pa.types.is_boolean(kind):
        values = pc.cast(values, pa.uint8())
    elif not (is_number(kind) or pa.types.is_null(kind)):
        raise UserError(f"{locate_row(0)}, column '{name}': expected numbers, got {kind}.")
    array = nearest(values)
    if pa.types.is_integer(kind) and all_alike(array, values):
        raise UserError(
            f"{locate_row(0).rpartition(': ')[0]}: column '{name}': expected numbers that 64-bit "
            "floats tell apart, got whole numbers beyond 2^53 that differ by as little as they are "
            f"rounded by, such as {values[0]}. Subtract a number from all of them, leave the "
            "column away, or take it for a category."
        )
    return array


def _numbers_in_texts(text: pa.Array, name: str, locate_row: LocateRow) -> pa.Array:
    """The numbers that texts are written as. Raises UserError for a text that is none."""
    try:
        return pc.cast(text, pa.float64())
    except pa.ArrowInvalid:
        cells = enumerate(text.to_pylist())
        row = next(row for row, value in cells if value is not None and not _parses(value))
        raise UserError(
            f"{locate_row(row)}, column '{name}': expected a number, got {text[row].as_py()!r}."
        ) from None


def _numbers_of_times(values: pa.Array) -> pa.Array:
    """Times of the day and spans in seconds, moments in days since 1970."""
    kind = values.type
    if pa.types.is_time(kind):
        return pc.divide(pc.cast(pc.cast(values, pa.time64("us")), pa.int64()), 1e6)
    if pa.types.is_duration(kind):
        return pc.divide(pc.cast(pc.cast(values, pa.duration("us"), safe=False), pa.int64()), 1e6)
    micros = pc.cast(pc.cast(values, pa.timestamp("us"), safe=False), pa.int64())
    return pc.divide(micros, DAY_US)


def nearest(values: pa.Array) -> np.ndarray:
    """The values as float64; whole numbers beyond 2^53 become the nearest one."""
    array: np.ndarray = pc.cast(values, pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return array


def all_alike(array: np.ndarray, values: pa.Array) -> bool:
    """Whether float64 rounds these whole numbers [N] by more than a thousandth of the distance
    between them.
    """
    known = array[~np.isnan(array)]
    if not len(known) or np.abs(known).max() < 2**53:
        return False
    least, most = pc.min_max(values).as_py().values()
    return bool(0 < most - least < 1000 * float(np.spacing(np.abs(known).max())))


def _parses(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def vectors(
    column: pa.ChunkedArray, name: str, locate_row: LocateRow, size: int | None = None
) -> np.ndarray:
    """Lists of numbers as float64 [N, size], nan where the list is missing. Raises UserError where
    lengths differ.
    """
    values = plain(column)
    if not is_list(values.type) or not (
        is_number(values.type.value_type) or pa.types.is_null(values.type.value_type)
    ):
        raise UserError(
            f"{locate_row(0)}, column '{name}': expected lists of numbers, got {values.type}."
        )
    lengths = pc.list_value_length(values).to_numpy(zero_copy_only=False).astype(float)
    known = np.flatnonzero(~np.isnan(lengths))
    if size is None:
        size = usual_length(column)
    odd = known[lengths[known] != size]
    if len(odd):
        raise UserError(
            f"{locate_row(int(odd[0]))}, column '{name}': expected {size} numbers as in other "
            f"rows, got {int(lengths[odd[0]])}."
        )
    array = np.full((len(values), size), np.nan)
    flat = pc.cast(pc.list_flatten(values), pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    array[known] = flat.reshape(-1, size)
    return array


def usual_length(column: pa.ChunkedArray) -> int:
    """How many values most lists have; 0 of a column without lists."""
    lengths = pc.list_value_length(plain(column)).drop_null().to_numpy(zero_copy_only=False)
    if not len(lengths):
        return 0
    return int(np.bincount(lengths).argmax())


def class_numbers(
    column: pa.ChunkedArray,
    name: str,
    classes: Sequence[str],
    locate_row: LocateRow,
    what: str = "classes",
) -> pa.Array:
    """The number of each label [N] among the classes, null where there is none. Raises UserError
    for one of no class; `what` says which classes these are.
    """
    text = texts(column)
    index = pc.index_in(text, value_set=pa.array(classes, pa.string()))
    odd = pc.and_(pc.is_valid(text), pc.is_null(index)).to_numpy(zero_copy_only=False)
    if odd.any():
        row = int(odd.argmax())
        raise UserError(
            f"{locate_row(row)}, column '{name}': expected one of the {what} {list(classes)}, got "
            f"'{text[row].as_py()}'. Correct the row, or leave it away."
        )
    return index


def named_files(values: pa.Array, endings: tuple[str, ...] = SUFFIXES) -> bool:
    """Whether these texts are names of picture files, as nine of ten must be."""
    known = values.drop_null()[:1000]
    ends = [value.lower().endswith(endings) for value in known.to_pylist()]
    return bool(ends) and sum(ends) >= 0.9 * len(ends)


def in_order(values: Any) -> tuple[str, ...]:
    """Texts by their value where they are whole numbers, else by their letters."""
    ordered = list(values)
    try:
        return tuple(sorted(ordered, key=lambda text: (int(text), text)))
    except ValueError:
        return tuple(sorted(ordered))
