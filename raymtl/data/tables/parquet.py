"""Parquet files: a block is a row group."""

import pyarrow as pa
import pyarrow.parquet as pq

from raymtl.data.tables.blocks import Block, BlockFormat, BlockRows, Reading
from raymtl.data.tables.paths import FileSet, has_threads
from raymtl.data.tables.stored import as_type, holds_texts, kind_of_bytes, plainer
from raymtl.data.tables.table_cache import KeptByFile
from raymtl.types import UserError


class Parquet(BlockFormat):
    """Parquet; bytes that are texts in the first row group are texts."""

    described = "a Parquet file"

    def contents(
        self, file_set: FileSet, file: str, reading: Reading
    ) -> tuple[pa.Schema, BlockRows]:
        with file_set.fs.open_input_file(file) as stream:
            about = pq.ParquetFile(stream, pre_buffer=has_threads(file_set.fs))
            rows = [about.metadata.row_group(i).num_rows for i in range(about.num_row_groups)]
            return _plain_schema(about, file_set, file, reading), list(enumerate(rows))

    def read(self, file_set: FileSet, block: Block) -> pa.Table:
        metadata = _METADATA.of(file_set, block.file)
        with file_set.fs.open_input_file(block.file) as stream:
            threads = has_threads(file_set.fs)
            opened = pq.ParquetFile(stream, metadata=metadata, pre_buffer=threads)
            return opened.read_row_group(block.row_group, use_threads=threads)


def _metadata(file_set: FileSet, file: str) -> pq.FileMetaData:
    with file_set.fs.open_input_file(file) as stream:
        return pq.read_metadata(stream)


_METADATA = KeptByFile(_metadata, most_files=64)
"""Of files whose row groups are read one by one."""


def _plain_schema(
    about: pq.ParquetFile, file_set: FileSet, file: str, reading: Reading
) -> pa.Schema:
    """Names and plain types; bytes that are texts in the first row group are texts."""
    try:
        stored = about.schema_arrow
        fields = [field.with_type(plainer(field.type)) for field in stored]
    except UnicodeDecodeError:
        raise UserError(
            f"{file}: expected names of columns in utf8, got others. Write the file again."
        ) from None
    if about.num_row_groups and len({field.name for field in fields}) == len(fields):
        names = [field.name for field in fields if kind_of_bytes(field.type)]
        if names:
            first = about.read_row_group(0, columns=names, use_threads=has_threads(file_set.fs))
            fields = [_of_bytes(field, first, reading.encoding) for field in fields]
    return pa.schema(fields)


def _of_bytes(field: pa.Field, first: pa.Table, encoding: str) -> pa.Field:
    """The column as texts or bytes, by its values in the first row group; others as they are."""
    if field.name not in first.column_names:
        return field
    if holds_texts(as_type(first[field.name], pa.binary()), encoding):
        return field.with_type(pa.string())
    return field.with_type(pa.binary())
