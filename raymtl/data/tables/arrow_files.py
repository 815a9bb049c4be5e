"""Arrow's own files and streams, as Feather and Hugging Face `datasets` save them: a block is a
record batch.

A folder that `Dataset.save_to_disk` wrote holds streams; what Hugging Face knows of the columns is
in their metadata. Columns of its type ClassLabel, which are numbers, are read as the names of the
classes, and -1 as missing.
"""

import json
import posixpath
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from raymtl.data.tables.blocks import Block, BlockFormat, BlockRows, Reading
from raymtl.data.tables.paths import FileSet
from raymtl.data.tables.stored import plainer
from raymtl.data.tables.table_cache import KeptByFile

MAGIC = b"ARROW1"
"""How a file begins that is no stream."""
CACHE = "cache-"
"""How the names begin of files that Hugging Face keeps beside the data, of results of `map`."""


class ArrowFiles(BlockFormat):
    """Arrow files (Feather 2) and streams."""

    described = "an Arrow file"

    def contents(
        self, file_set: FileSet, file: str, reading: Reading
    ) -> tuple[pa.Schema, BlockRows]:
        opened = _OPENED.of(file_set, file)
        fields = []
        for field in opened.schema:
            kind = plainer(field.type)
            if field.name in opened.classes:
                kind = pa.string()
            fields.append(field.with_type(kind))
        return pa.schema(fields), list(enumerate(opened.rows))

    def read(self, file_set: FileSet, block: Block) -> pa.Table:
        opened = _OPENED.of(file_set, block.file)
        assert block.row_group is not None
        with file_set.fs.open_input_file(block.file) as stream:
            batch = opened.batch(stream, block.row_group)
        table = pa.Table.from_batches([batch])
        for name, classes in opened.classes.items():
            named = _named(table[name], classes)
            table = table.set_column(table.column_names.index(name), name, named)
        return table


class _Opened(NamedTuple):
    """What a file holds, and where."""

    schema: pa.Schema
    rows: Sequence[int]
    """Of each batch."""
    offsets: Sequence[int]
    """Where each batch of a stream begins; none of a file, which has an index of its own."""
    classes: Mapping[str, Sequence[str]]
    """The names of the classes of columns."""

    def batch(self, stream: pa.NativeFile, number: int) -> pa.RecordBatch:
        """The batch of this number."""
        if not self.offsets:
            return pa.ipc.open_file(stream).get_batch(number)
        has_dictionaries = any(pa.types.is_dictionary(field.type) for field in self.schema)
        if not has_dictionaries:
            stream.seek(self.offsets[number])
            return pa.ipc.read_record_batch(pa.ipc.read_message(stream), self.schema)
        # Dictionaries stand between the batches.
        reader = pa.ipc.open_stream(stream)
        for _ in range(number):
            reader.read_next_batch()
        return reader.read_next_batch()


def _opened(file_set: FileSet, file: str) -> _Opened:
    """Finds the batches of a file."""
    with file_set.fs.open_input_file(file) as stream:
        begins = stream.read(len(MAGIC))
        stream.seek(0)
        if begins == MAGIC:
            reader = pa.ipc.open_file(stream)
            numbers = range(reader.num_record_batches)
            rows = [reader.get_batch(number).num_rows for number in numbers]
            return _Opened(reader.schema, rows, (), _classes(reader.schema))
        return _read_stream(stream)


_OPENED = KeptByFile(_opened)


def _read_stream(stream: pa.NativeFile) -> _Opened:
    reader = pa.ipc.open_stream(stream)
    rows: list[int] = []
    offsets: list[int] = []
    while True:
        offset = stream.tell()
        try:
            batch = reader.read_next_batch()
        except StopIteration:
            return _Opened(reader.schema, rows, offsets, _classes(reader.schema))
        rows.append(batch.num_rows)
        offsets.append(offset)


def _classes(schema: pa.Schema) -> dict[str, list[str]]:
    """Column -> the names of its classes, of those that Hugging Face calls ClassLabel."""
    written = (schema.metadata or {}).get(b"huggingface")
    if written is None:
        return {}
    features: Mapping[str, Any] = json.loads(written).get("info", {}).get("features") or {}
    found = {}
    for name, feature in features.items():
        is_label = isinstance(feature, Mapping) and feature.get("_type") == "ClassLabel"
        if is_label and feature.get("names") and name in schema.names:
            found[name] = [str(each) for each in feature["names"]]
    return found


def _named(column: pa.ChunkedArray, classes: Sequence[str]) -> pa.ChunkedArray:
    """The numbers of classes as their names; null where there is none of this number."""
    is_known = pc.and_(pc.greater_equal(column, 0), pc.less(column, len(classes)))
    numbers = pc.if_else(is_known, column, pa.scalar(None, column.type))
    return pc.take(pa.array(classes, pa.string()), numbers)


def without_caches(files: Sequence[str]) -> list[str]:
    """The files that hold data, where Hugging Face keeps caches beside them."""
    shown = [file for file in files if not posixpath.basename(file).startswith(CACHE)]
    return shown or list(files)
