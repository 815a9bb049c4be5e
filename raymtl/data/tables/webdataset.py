"""WebDataset: tar files whose members are samples, `a/000.jpg`, `a/000.cls`, `a/000.json`.

Members that follow each other and are called alike up to the first dot are one sample; what comes
after the dot says what they hold. A block is some samples that follow each other.
"""

import json
import posixpath
import tarfile
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from raymtl.data.tables.blocks import Block, BlockFormat, BlockRows, Reading
from raymtl.data.tables.columns import SUFFIXES
from raymtl.data.tables.paths import FileSet, reason
from raymtl.data.tables.table_cache import KeptByFile
from raymtl.types import UserError

KEY = "__key__"
"""The column with the names of the samples."""
PICTURE = "image"
"""The column with the pictures, whatever their ending."""
INTEGERS = ("cls", "cls2", "class", "count", "index", "inx", "id")
TEXTS = ("txt", "text", "transcript")
OBJECTS = ("json", "jsn")
BLOCK_BYTES = 32e6
BLOCK_SAMPLES = 4096


class Member(NamedTuple):
    """Where the bytes of a member stand in its file."""

    offset: int
    size: int


Sample = Mapping[str, Member]
"""What comes after the first dot -> the member."""


class WebDataset(BlockFormat):
    """Tar files of samples."""

    described = "a tar file of WebDataset, not compressed"

    def contents(
        self, file_set: FileSet, file: str, reading: Reading
    ) -> tuple[pa.Schema, BlockRows]:
        index = _INDEXES.of(file_set, file)
        rows = [stop - start for start, stop in index.blocks]
        return index.schema, list(enumerate(rows))

    def read(self, file_set: FileSet, block: Block) -> pa.Table:
        index = _INDEXES.of(file_set, block.file)
        assert block.row_group is not None
        start, stop = index.blocks[block.row_group]
        with file_set.fs.open_input_file(block.file) as stream:
            rows = [
                _row(stream, block.file, key, sample) for key, sample in index.samples[start:stop]
            ]
        columns = {
            field.name: pa.array([row.get(field.name) for row in rows], field.type)
            for field in index.schema
        }
        return pa.table(columns)


class _Index(NamedTuple):
    """The samples of a file, and the first and last of each block."""

    samples: Sequence[tuple[str, Sample]]
    blocks: Sequence[tuple[int, int]]
    schema: pa.Schema


def _index_of(file_set: FileSet, file: str) -> _Index:
    """Finds the samples of a file and their columns. Raises UserError for a sample with a member
    twice.
    """
    with file_set.fs.open_input_file(file) as stream:
        samples = _samples(stream, file)
        return _Index(samples, _blocks(samples), _schema(stream, file, samples))


_INDEXES = KeptByFile(_index_of)


def _samples(stream: pa.NativeFile, file: str) -> list[tuple[str, Sample]]:
    """The samples with their keys, in the order of the file."""
    found: list[tuple[str, dict[str, Member]]] = []
    try:
        with tarfile.open(fileobj=stream, mode="r:") as archive:
            for info in archive:
                folder, name = posixpath.split(info.name)
                stem, dot, ending = name.partition(".")
                if not info.isfile() or not stem or not dot:
                    continue  # a folder, or what macOS and others add
                key = posixpath.join(folder, stem)
                if not found or found[-1][0] != key:
                    found.append((key, {}))
                column = _column_of(ending)
                if column in found[-1][1]:
                    raise UserError(
                        f"{file}: sample {key}: expected one member '{column}', got two. Rename "
                        "or remove one."
                    )
                found[-1][1][column] = Member(info.offset_data, info.size)
    except tarfile.TarError as error:
        raise OSError(str(error)) from None
    return list(found)


def _column_of(ending: str) -> str:
    """The column of members with this ending."""
    ending = ending.lower()
    if f".{ending}" in SUFFIXES:
        return PICTURE
    return ending


def _blocks(samples: Sequence[tuple[str, Sample]]) -> list[tuple[int, int]]:
    """The first and the last sample, excluded, of each block."""
    blocks = []
    start, size = 0, 0
    for number, (_, sample) in enumerate(samples):
        size += sum(member.size for member in sample.values())
        if size >= BLOCK_BYTES or number + 1 - start >= BLOCK_SAMPLES:
            blocks.append((start, number + 1))
            start, size = number + 1, 0
    if start < len(samples):
        blocks.append((start, len(samples)))
    return blocks


def _schema(stream: pa.NativeFile, file: str, samples: Sequence[tuple[str, Sample]]) -> pa.Schema:
    """The columns of all samples; those of JSON objects have the types that hold all values."""
    names = dict.fromkeys(name for _, sample in samples for name in sample)
    fields = [pa.field(KEY, pa.string())]
    for name in names:
        if name not in OBJECTS:
            fields.append(pa.field(name, _kind_of(name)))
    parts = {name for name in names if name in OBJECTS}
    objects = [
        _row(stream, file, key, {name: sample[name] for name in parts if name in sample})
        for key, sample in samples
        if parts & set(sample)
    ]
    known = {field.name for field in fields}
    for name in dict.fromkeys(name for row in objects for name in row):
        if name == KEY:
            continue
        if name in known:
            raise UserError(
                f"{file}: expected different names of columns, got '{name}' as a member and in a "
                "JSON object. Rename one."
            )
        fields.append(_object_field(file, name, [row.get(name) for row in objects]))
    return pa.schema(fields)


def _object_field(file: str, name: str, values: Sequence[Any]) -> pa.Field:
    """The column of a value in JSON objects. Raises UserError for values of several types."""
    try:
        kind = pa.array(values).type
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise UserError(
            f"{file}: '{name}' in JSON objects: expected one type in all samples, got several "
            f"({reason(error)}). Correct them."
        ) from None
    return pa.field(name, kind)


def _kind_of(name: str) -> pa.DataType:
    """The type of a column of members."""
    if name in INTEGERS:
        return pa.int64()
    if name in TEXTS:
        return pa.string()
    return pa.binary()


def _row(stream: pa.NativeFile, file: str, key: str, sample: Sample) -> dict[str, Any]:
    """The columns of a sample. Raises UserError for a member that is not of its kind."""
    row: dict[str, Any] = {KEY: key}
    for name, member in sample.items():
        stream.seek(member.offset)
        content = stream.read(member.size)
        if len(content) < member.size:
            raise OSError(f"it ends within sample {key}")
        try:
            row.update(_values(name, content))
        except ValueError as error:
            raise UserError(
                f"{file}: sample {key}: '{name}': expected {_expected(name)}, got something else "
                f"({reason(error)}). Correct it."
            ) from None
    return row


def _values(name: str, content: bytes) -> dict[str, Any]:
    """The columns that a member stands for. Raises ValueError."""
    if name in INTEGERS:
        return {name: int(content)}
    if name in TEXTS:
        return {name: content.decode()}
    if name not in OBJECTS:
        return {name: content}
    value = json.loads(content)
    if not isinstance(value, dict):
        raise ValueError(f"a {type(value).__name__}")
    return value


def _expected(name: str) -> str:
    if name in INTEGERS:
        return "a whole number"
    if name in TEXTS:
        return "a text in utf8"
    return "a JSON object"
