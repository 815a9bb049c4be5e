"""Large CSV files in pieces of whole rows, each of which is read by itself."""

import codecs
import re
from typing import IO

import pyarrow as pa

from raymtl.data.tables.blocks import Block, Reading
from raymtl.data.tables.contents import decoded
from raymtl.data.tables.delimited import SAMPLED, delimiter_of, read_csv
from raymtl.data.tables.paths import FileSet
from raymtl.data.tables.stored import plainer
from raymtl.types import UserError

COMPRESSED = (".gz", ".bz2", ".zst")
WIDE = ("utf-16", "utf-32", "utf-7")
"""Encodings in which the byte of a line's end may be a part of a letter."""
WIDE_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)
LINE = b"\n"
QUOTE = b'"'


def can_be_cut(file_set: FileSet, file: str, reading: Reading) -> bool:
    """Whether a file is larger than a piece, and its rows can be found without reading it whole.

    A compressed file, or one in UTF-16, cannot be cut.
    """
    if reading.piece_bytes is None or file.lower().endswith(COMPRESSED):
        return False
    if codecs.lookup(reading.encoding).name.startswith(WIDE):
        return False
    if (file_set.fs.get_file_info(file).size or 0) <= reading.piece_bytes:
        return False
    with file_set.fs.open_input_file(file) as stream:
        return not stream.read(4).startswith(WIDE_MARKS)


def cut(file_set: FileSet, file: str, reading: Reading) -> tuple[pa.Schema, list[Block]]:
    """The columns of a file, and its pieces with the numbers of their rows.

    Reads the file once, a piece at a time. Raises UserError for a row that has not as many cells
    as the header.
    """
    blocks: list[Block] = []
    schema: pa.Schema | None = None
    rows = 0
    for span in _spans(file_set, file, reading):
        block = Block(file, start=rows, span=span)
        table = read_piece(file_set, block, reading)
        if schema is None:
            fields = [field.with_type(plainer(field.type)) for field in table.schema]
            schema = pa.schema(fields, table.schema.metadata)
        blocks.append(block._replace(rows=len(table)))
        rows += len(table)
    return schema, blocks


def read_piece(file_set: FileSet, block: Block, reading: Reading) -> pa.Table:
    """The cells of a piece as they are written. Raises UserError, ArrowException and OSError."""
    assert block.span is not None
    start, end = block.span
    with file_set.fs.open_input_file(block.file) as stream:
        head = _Head.of(stream, block.file, reading)
        stream.seek(start)
        content = stream.read(end - start)
    if start and not reading.columns:
        content = head.header + content
    text = decoded(content, reading.encoding, block.file)
    reading = reading._replace(delimiter=head.delimiter)
    shown = block.file
    if block.start:
        shown = f"{block.file}, from row {block.start} on"
    return read_csv(text, shown, reading)


class _Head:
    """The beginning of a file."""

    def __init__(self, header: bytes, delimiter: str) -> None:
        self.header = header
        self.delimiter = delimiter

    @classmethod
    def of(cls, stream: IO[bytes], file: str, reading: Reading) -> "_Head":
        """Reads it from an opened file."""
        content = stream.read(SAMPLED)
        end = _end_of_rows(content, reading.delimiter, first=True)
        while end is None:
            more = stream.read(SAMPLED)
            content += more
            end = _end_of_rows(content, reading.delimiter, first=True)
            if not more:
                end = len(content)
        # Whole lines, so that no letter of several bytes is cut.
        lines = content[: content.rfind(LINE) + 1] or content
        sample = decoded(lines, reading.encoding, file)
        if not sample.strip():
            raise UserError(f"{file}: expected a header and rows, got empty lines.")
        return cls(content[:end], reading.delimiter or delimiter_of(sample))


def _spans(file_set: FileSet, file: str, reading: Reading) -> list[tuple[int, int]]:
    """First byte and byte behind the last one of each piece."""
    assert reading.piece_bytes is not None
    size = file_set.fs.get_file_info(file).size
    spans = []
    start = 0
    with file_set.fs.open_input_file(file) as stream:
        head = _Head.of(stream, file, reading)
        while start < size:
            stream.seek(start)
            length = _length_of_piece(stream, size - start, head.delimiter, reading.piece_bytes)
            if not start:
                length = max(length, len(head.header))
            spans.append((start, start + length))
            start += length
    return spans


def _length_of_piece(stream: IO[bytes], left: int, delimiter: str, wanted: int) -> int:
    """The bytes of a piece of whole rows from here on: more than `wanted` where a row is longer."""
    content = stream.read(wanted)
    while len(content) < left:
        end = _end_of_rows(content, delimiter)
        if end is not None:
            return end
        content += stream.read(wanted)
    return left


def _end_of_rows(content: bytes, delimiter: str | None, *, first: bool = False) -> int | None:
    """Behind the last row's end in the content, or that of the first row that is not empty; None
    without one. A line's end in quotes ends no row.
    """
    plain = content
    if QUOTE in content:
        plain = _quoted(delimiter).sub(lambda found: b"q" * len(found[0]), content)
    if first:
        begin = len(plain) - len(plain.lstrip(b"\r\n"))
        end = plain.find(LINE, begin)
    else:
        end = plain.rfind(LINE)
    if end < 0:
        return None
    return end + 1


def _quoted(delimiter: str | None) -> re.Pattern[bytes]:
    """A cell in quotes; one that does not end here lasts to the end of the content."""
    marks = re.escape((delimiter or ",;|\t").encode())
    return re.compile(rb"(?:^|(?<=[\n\r" + marks + rb']))"(?:[^"]|"")*(?:"|\Z)')
