"""The types that files store values in, and the plainer ones that they are read as."""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from raymtl.data.tables.columns import is_number, is_text, texts
from raymtl.types import UserError

LOOKED_AT = 100
"""Values of bytes that are looked at to tell whether they are texts."""


def plainer(kind: pa.DataType) -> pa.DataType:
    """The type that values of a stored type are read as; most are read as they are."""
    tests = pa.types
    if isinstance(kind, pa.BaseExtensionType):
        if kind.extension_name == "arrow.bool8":
            return pa.bool_()
        return plainer(kind.storage_type)
    if tests.is_run_end_encoded(kind):
        return plainer(kind.value_type)
    if tests.is_dictionary(kind):
        value = plainer(kind.value_type)
        if value == kind.value_type:
            return kind
        return value
    if tests.is_float16(kind):
        return pa.float32()
    if tests.is_string_view(kind):
        return pa.string()
    if tests.is_binary_view(kind) or tests.is_fixed_size_binary(kind):
        return pa.binary()
    return _plainer_nested(kind)


def _plainer_nested(kind: pa.DataType) -> pa.DataType:
    """The same for lists and structs; other types stay as they are."""
    tests = pa.types
    if tests.is_fixed_size_list(kind):
        return pa.list_(plainer(kind.value_type), kind.list_size)
    if tests.is_large_list(kind) or tests.is_large_list_view(kind):
        return pa.large_list(plainer(kind.value_type))
    if tests.is_list(kind) or tests.is_list_view(kind):
        return pa.list_(plainer(kind.value_type))
    if tests.is_struct(kind):
        return pa.struct([field.with_type(plainer(field.type)) for field in kind])
    return kind


def common(kinds: Sequence[pa.DataType]) -> pa.DataType | None:
    """The type that values of all these types can have without loss; None of numbers beside texts,
    and of others.
    """
    wanted = kinds[0]
    for kind in kinds[1:]:
        shared_type = _common(wanted, kind)
        if shared_type is None:
            return None
        wanted = shared_type
    return wanted


def _common(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    if one == other:
        return one
    one, other = (
        kind.value_type if pa.types.is_dictionary(kind) else kind for kind in (one, other)
    )
    if pa.types.is_null(one) or pa.types.is_null(other):
        if pa.types.is_null(one):
            return other
        return one
    if (
        pa.types.is_uint64(one) != pa.types.is_uint64(other)
        and pa.types.is_integer(one)
        and pa.types.is_integer(other)
    ):
        return pa.decimal128(20, 0)  # pyarrow takes int64, which cannot hold the largest
    if _is_moment(one) and _is_moment(other):
        return pa.timestamp("us")
    try:
        fields = [pa.schema([("", kind)]) for kind in (one, other)]
        return pa.unify_schemas(fields, promote_options="permissive").field(0).type
    except pa.ArrowException:
        return None


def _is_moment(kind: pa.DataType) -> bool:
    return bool(pa.types.is_date(kind) or pa.types.is_timestamp(kind))


def as_type(
    column: pa.ChunkedArray, wanted: pa.DataType, encoding: str = "utf8"
) -> pa.ChunkedArray:
    """The same values in the plainer or common type. Raises ArrowException or UnicodeDecodeError
    for what has none.
    """
    if column.type == wanted:
        return column
    chunks = [_plain_chunk(chunk) for chunk in column.chunks]
    made = []
    for chunk in chunks:
        if chunk.type == wanted:
            made.append(chunk)
        elif is_text(wanted) and pa.types.is_binary(chunk.type):
            made.append(_decoded(chunk, encoding).cast(wanted))
        elif is_text(wanted) != is_text(chunk.type) and (is_text(wanted) or is_number(wanted)):
            made.append(texts(pa.chunked_array([chunk])).cast(wanted))
        else:
            made.append(chunk.cast(wanted, safe=False))
    return pa.chunked_array(made, wanted)


def _plain_chunk(chunk: pa.Array) -> pa.Array:
    """Without extensions, runs and dictionaries around the values, and bytes of one kind."""
    while True:
        kind = chunk.type
        if isinstance(kind, pa.BaseExtensionType):
            chunk = chunk.storage
        elif pa.types.is_run_end_encoded(kind):
            chunk = pc.run_end_decode(chunk)
        elif pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind):
            chunk = pa.array(
                chunk.to_pylist(), pa.list_(kind.value_type)
            )  # pyarrow 26 casts them to damaged ones
        elif pa.types.is_dictionary(kind):
            chunk = chunk.dictionary_decode()
        elif _is_bytes(kind) and not pa.types.is_binary(kind):
            chunk = chunk.cast(pa.binary())
        else:
            return chunk


def _is_bytes(kind: pa.DataType) -> bool:
    return any(
        getattr(pa.types, f"is_{name}")(kind)
        for name in ("binary", "large_binary", "binary_view", "fixed_size_binary")
    )


def _decoded(values: pa.Array, encoding: str) -> pa.Array:
    if encoding.lower().replace("-", "") == "utf8":
        return values.cast(pa.string())
    return pa.array(
        [None if value is None else value.decode(encoding) for value in values.to_pylist()],
        pa.string(),
    )


def holds_texts(values: pa.ChunkedArray, encoding: str) -> bool:
    """Whether bytes are texts, as some writers of Parquet store these: none of the first has bytes
    that no text has.
    """
    known = [value for value in values.drop_null()[:LOOKED_AT].to_pylist() if value]
    return bool(known) and all(_is_printable(value, encoding) for value in known)


def _is_printable(value: bytes, encoding: str) -> bool:
    from raymtl.data.tables.pictures import is_picture

    try:
        text = value.decode(encoding)
    except UnicodeDecodeError:
        return False
    return all(letter.isprintable() or letter.isspace() for letter in text) and not is_picture(
        value
    )


def kind_of_bytes(kind: pa.DataType) -> bool:
    """Whether only the values say what a column of this type holds: bytes that may be texts,
    pictures or others.
    """
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def numbers_in(column: pa.ChunkedArray) -> bool:
    """Whether all these texts are written as numbers are, without zeros before them, as codes
    have.
    """
    known = texts(column).drop_null()
    if len(known) == 0:
        return True
    if pc.any(pc.match_substring_regex(known, r"^[+-]?0\d")).as_py():
        return False
    try:
        pc.cast(known, pa.float64())
    except pa.ArrowInvalid:
        return False
    return True


def codes_in(column: pa.ChunkedArray) -> bool:
    """Whether all these texts are digits, some with zeros before them: codes, such as those of post
    and telephone.
    """
    known = texts(column).drop_null()
    digits = pc.match_substring_regex(known, r"^\d+$")
    return bool(len(known)) and bool(pc.all(digits).as_py())


def refusal(name: str, file: str, kind: pa.DataType, other: str, wanted: pa.DataType) -> UserError:
    """What is said of a column whose values in two files have no type in common."""
    return UserError(
        f"{file}: column '{name}': expected {wanted} as in {other}, got {kind}. Correct the "
        f"values, name it as a category, {{{name}: category}} in data.inputs, or leave it away by "
        "data.exclude."
    )
