"""Columns of Arrow tables: which role they have, and how they become numbers."""

import re
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raymtl.data.tables.schema import FittedColumn, Role
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
        text = texts(values)
        try:
            values = pc.cast(text, pa.float64())
        except pa.ArrowInvalid:
            row = next(
                row
                for row, value in enumerate(text.to_pylist())
                if value is not None and not _parses(value)
            )
            raise UserError(
                f"{locate_row(row)}, column '{name}': expected a number, got {text[row].as_py()!r}."
            ) from None
    elif pa.types.is_time(kind):
        values = pc.divide(pc.cast(pc.cast(values, pa.time64("us")), pa.int64()), 1e6)
    elif pa.types.is_duration(kind):
        values = pc.divide(pc.cast(pc.cast(values, pa.duration("us"), safe=False), pa.int64()), 1e6)
    elif pa.types.is_temporal(kind):
        values = pc.divide(
            pc.cast(pc.cast(values, pa.timestamp("us"), safe=False), pa.int64()), DAY_US
        )
    elif not (is_number(kind) or pa.types.is_null(kind)):
        raise UserError(f"{locate_row(0)}, column '{name}': expected numbers, got {kind}.")
    if pa.types.is_boolean(kind):
        values = pc.cast(values, pa.uint8())
    # Whole numbers beyond 2^53 become the nearest float64.
    array: np.ndarray = pc.cast(values, pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    if pa.types.is_integer(kind) and _all_alike(array, values):
        raise UserError(
            f"{locate_row(0).rpartition(': ')[0]}: column '{name}': expected numbers that 64-bit "
            "floats tell apart, got whole numbers beyond 2^53 that differ by as little as they are "
            f"rounded by, such as {values[0]}. Subtract a number from all of them, leave the "
            "column away, or take it for a category."
        )
    return array


def _all_alike(array: np.ndarray, values: pa.Array) -> bool:
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
        if len(known):
            size = int(np.bincount(lengths[known].astype(int)).argmax())
        else:
            size = 0
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


def named_files(values: pa.Array, endings: tuple[str, ...] = SUFFIXES) -> bool:
    """Whether these texts are names of picture files, as nine of ten must be."""
    known = values.drop_null()[:1000]
    ends = [value.lower().endswith(endings) for value in known.to_pylist()]
    return bool(ends) and sum(ends) >= 0.9 * len(ends)


def role_of(column: pa.ChunkedArray, max_categories: int) -> tuple[Role | None, str]:
    """The role that the values of a column speak for, or None and the reason why it is better left
    out.
    """
    values = plain(column)
    kind = values.type
    if len(values) == values.null_count:
        return None, "no values"
    if is_bytes(kind):
        if holds_pictures(values):
            return ("picture", "")
        return (None, "bytes that are neither pictures nor texts")
    if is_list(kind):
        lengths = pc.unique(pc.list_value_length(values.drop_null()))
        if not is_number(kind.value_type):
            return None, f"{kind}, no numbers"
        if len(lengths) == 1 and lengths[0].as_py():
            return ("vector", "")
        return (None, "lists of different lengths")
    if pa.types.is_struct(kind) or pa.types.is_map(kind) or not (is_number(kind) or is_text(kind)):
        return None, f"{kind}, which is no number, text, list or picture"
    different = pc.unique(texts(values)).drop_null()
    missing = len(values) - len(texts(values).drop_null())
    if len(different) == 0:
        return None, "no values"
    if len(different) == 1 and not missing:
        return None, f"always {different[0].as_py()!r}"
    if pa.types.is_integer(kind) and not missing and _counts_rows(values):
        return None, "the number of the row"
    if pa.types.is_integer(kind) and _all_alike(_nearest(values), values):
        return (
            None,
            "whole numbers beyond 2^53 that differ less than 64-bit floats are exact: keys, "
            "perhaps",
        )
    if is_number(kind):
        if len(different) > 1:
            return ("number", "")
        return (None, f"always {different[0].as_py()!r}, or missing")
    if named_files(texts(values)):
        return "picture", ""
    if len(different) <= max_categories and len(different) <= max(2, len(values) / 2):
        return "category", ""
    words = np.mean([len(text.split()) for text in different[:1000].to_pylist()])
    if len(different) > 0.9 * len(values) and words < 2:
        return None, "a name of the row: almost all are different"
    return "text", ""


def _nearest(values: pa.Array) -> np.ndarray:
    array: np.ndarray = pc.cast(values, pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return array


def holds_pictures(values: pa.Array) -> bool:
    """Whether some of the first of these bytes, or of the `bytes` in these structs, begin as
    pictures do.
    """
    from raymtl.data.tables.pictures import is_picture

    known = values.drop_null()[:20].to_pylist()
    contents = [value.get("bytes") if isinstance(value, dict) else value for value in known]
    if not any(contents):
        return True  # names of pictures beside empty bytes
    return any(is_picture(content) for content in contents if content)


def _counts_rows(values: pa.Array) -> bool:
    """Whether every whole number from the least to the largest is there once, in any order."""
    ends = pc.min_max(values).as_py()
    return len(values) > 2 and ends["max"] - ends["min"] + 1 == len(values) == len(
        pc.unique(values)
    )


def fit_column(
    column: pa.ChunkedArray,
    name: str,
    role: Role,
    locate_row: LocateRow,
    *,
    max_categories: int,
    text_size: int,
) -> FittedColumn:
    """What has to be known to encode the column, from the rows for training."""
    if role == "picture":
        return FittedColumn(column=name, role=role)
    if role == "text":
        return FittedColumn(column=name, role=role, size=text_size)
    if role == "category":
        counts = pc.value_counts(texts(column).drop_null()).to_pylist()
        if len(counts) > max_categories:
            # The frequent ones; all others are one.
            counts = sorted(counts, key=lambda entry: (-entry["counts"], entry["values"]))[
                :max_categories
            ]
        categories = in_order(entry["values"] for entry in counts)
        return FittedColumn(column=name, role=role, size=len(categories) + 1, categories=categories)
    if role == "vector":
        values = vectors(column, name, locate_row)
    else:
        values = numbers(column, name, locate_row)
    known = values[np.isfinite(values)]
    if not known.size:
        raise UserError(
            f"{locate_row(0)}, column '{name}': expected numbers in the rows for training, got "
            "none."
        )
    # A vector keeps its geometry: one mean and one spread for all of its numbers.
    mean, std = moments(known)
    return FittedColumn(
        column=name,
        role=role,
        size=values.shape[1] if role == "vector" else 1,
        mean=mean,
        std=std or 1.0,
    )


def moments(values: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation of finite numbers; the latter is 0 where rounding alone makes
    them differ.
    """
    scale = float(np.abs(values).max()) or 1.0
    scaled = values / scale  # their squares could be too large otherwise
    mean, std = float(scaled.mean()), float(scaled.std())
    return scale * mean, scale * std if std > 1e-12 * abs(mean) else 0.0


def encode_column(
    fitted: FittedColumn,
    column: pa.ChunkedArray,
    out: np.ndarray,
    locate_row: LocateRow,
    *,
    impute: bool,
) -> None:
    """Writes the numbers of a column to `out` [N, size].

    A missing number becomes the mean of the rows for training, 0 in their scale, where `impute`
    allows it.
    """
    if fitted.role == "text":
        out[:] = hashed(texts(column), fitted.size)
        return
    if fitted.role == "category":
        index = pc.index_in(texts(column), value_set=pa.array(fitted.categories, pa.string()))
        out[:] = 0
        out[
            np.arange(len(out)), pc.fill_null(index, fitted.size - 1).to_numpy(zero_copy_only=False)
        ] = 1
        return
    name = fitted.column
    if fitted.role == "vector":
        values = vectors(column, name, locate_row, fitted.size)
    else:
        values = numbers(column, name, locate_row)[:, None]
    if not np.isfinite(values.sum()):
        gone = ~np.isfinite(values).all(1)
        row = int(gone.argmax())
        infinite = np.isinf(values).any(1)
        if infinite.any():
            row = int(infinite.argmax())
            raise UserError(
                f"{locate_row(row)}, column '{name}': expected a finite number, got "
                f"{values[row].tolist()}."
            )
        if not impute:
            raise UserError(
                f"{locate_row(row)}, column '{name}': expected a number, got none "
                f"({int(gone.sum())} such rows here). data.missing_inputs: mean takes the mean of "
                "the rows for training; or leave the column away."
            )
        values = np.where(np.isnan(values), fitted.mean, values)
    np.multiply(values - fitted.mean, 1 / fitted.std, out=out, casting="same_kind")


def hashed(text: pa.Array, size: int) -> np.ndarray:
    """Bags of words, [N, size] float32 of length 1: each word is counted in the place that its hash
    says.
    """
    out = np.zeros((len(text), size), np.float32)
    places: dict[str, int] = {}
    for row, value in enumerate(text.to_pylist()):
        for word in re.findall(r"\w+", (value or "").lower()):
            place = places.get(word)
            if place is None:
                place = places[word] = zlib.crc32(word.encode()) % size
            out[row, place] += 1
    unit_rows: np.ndarray = out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1)
    return unit_rows


def in_order(values: Any) -> tuple[str, ...]:
    """Texts by their value where they are whole numbers, else by their letters."""
    found = list(values)
    try:
        return tuple(sorted(found, key=lambda text: (int(text), text)))
    except ValueError:
        return tuple(sorted(found))
