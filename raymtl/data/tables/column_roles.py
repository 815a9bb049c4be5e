"""The roles that columns have as inputs: numbers, categories, texts, vectors or pictures."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raymtl.data.tables.columns import (
    all_alike,
    is_bytes,
    is_list,
    is_number,
    is_text,
    named_files,
    nearest,
    plain,
    texts,
)
from raymtl.data.tables.fitted_column import Role


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
            return "picture", ""
        return None, "bytes that are neither pictures nor texts"
    if is_list(kind):
        return _role_of_lists(values)
    if pa.types.is_struct(kind) or pa.types.is_map(kind) or not (is_number(kind) or is_text(kind)):
        return None, f"{kind}, which is no number, text, list or picture"
    known = texts(values).drop_null()
    different = pc.unique(known)
    missing = len(values) - len(known)
    if len(different) == 0:
        return None, "no values"
    if len(different) == 1 and not missing:
        return None, f"always {different[0].as_py()!r}"
    if is_number(kind):
        return _role_of_numbers(values, different, missing)
    return _role_of_texts(values, different, max_categories)


def _role_of_lists(values: pa.Array) -> tuple[Role | None, str]:
    if not is_number(values.type.value_type):
        return None, f"{values.type}, no numbers"
    lengths = pc.unique(pc.list_value_length(values.drop_null()))
    if len(lengths) == 1 and lengths[0].as_py():
        return "vector", ""
    return None, "lists of different lengths"


def _role_of_numbers(
    values: pa.Array, different: pa.Array, missing: int
) -> tuple[Role | None, str]:
    whole = pa.types.is_integer(values.type)
    if whole and not missing and _counts_rows(values):
        return None, "the number of the row"
    if whole and all_alike(nearest(values), values):
        return (
            None,
            "whole numbers beyond 2^53 that differ less than 64-bit floats are exact: keys, "
            "perhaps",
        )
    if len(different) > 1:
        return "number", ""
    return None, f"always {different[0].as_py()!r}, or missing"


def _role_of_texts(
    values: pa.Array, different: pa.Array, max_categories: int
) -> tuple[Role | None, str]:
    if named_files(texts(values)):
        return "picture", ""
    if len(different) <= max_categories and len(different) <= max(2, len(values) / 2):
        return "category", ""
    words = np.mean([len(text.split()) for text in different[:1000].to_pylist()])
    if len(different) > 0.9 * len(values) and words < 2:
        return None, "a name of the row: almost all are different"
    return "text", ""


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
