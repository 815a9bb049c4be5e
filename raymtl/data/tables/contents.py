"""The bytes of a file: what kind of file they are, and the text in them whatever its encoding."""

import codecs
from typing import TYPE_CHECKING, NamedTuple

from raymtl.types import UserError

if TYPE_CHECKING:
    import pyarrow as pa

MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before that of UTF-16, with which it begins
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
"""Byte order marks, which say the encoding of a text."""
HEAD = 4096
"""Bytes that are looked at to tell what a file is."""


class Signature(NamedTuple):
    """How files of a kind begin."""

    begins: bytes
    what: str
    advice: str
    ending: str = ""
    """Of the names of compressed files that are decompressed here."""


_UNPACK = "Unpack it, and give the path of what is in it."
_SAVE = "Save the sheet as CSV, and give the path of that file."
_FETCH = "Fetch the file again: this is another one in its place."
SIGNATURES = (
    Signature(b"\x1f\x8b", "a file compressed by gzip", "Rename it so that it ends in .gz.", ".gz"),
    Signature(b"BZh", "a file compressed by bzip2", "Rename it so that it ends in .bz2.", ".bz2"),
    Signature(
        b"\x28\xb5\x2f\xfd",
        "a file compressed by Zstandard",
        "Rename it so that it ends in .zst.",
        ".zst",
    ),
    Signature(b"\xfd7zXZ\x00", "a file compressed by xz", _UNPACK),
    Signature(b"\x04\x22\x4d\x18", "a file compressed by LZ4", _UNPACK),
    Signature(b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    Signature(b"Rar!\x1a\x07", "a RAR archive", _UNPACK),
    Signature(b"PK\x05\x06", "an empty zip archive", _UNPACK),
    Signature(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Excel workbook", _SAVE),
    Signature(
        b"PAR1",
        "a Parquet file",
        "Rename it so that it ends in .parquet, or set data.format: parquet.",
    ),
    Signature(
        b"ARROW1",
        "an Arrow file",
        "Rename it so that it ends in .arrow, or set data.format: arrow.",
    ),
    Signature(b"FEA1", "a Feather file", "Save it as Parquet."),
    Signature(b"Obj\x01", "an Avro file", "Save it as Parquet."),
    Signature(b"ORC", "an ORC file", "Save it as Parquet."),
    Signature(b"\x89HDF\r\n\x1a\n", "an HDF5 file", "Save its table as Parquet or CSV."),
    Signature(b"MATLAB 7.3", "a MATLAB file of version 7.3", "Save it with -v7."),
    Signature(
        b"MATLAB 5.0",
        "a MATLAB file",
        "Rename it so that it ends in .mat, or set data.format: mat.",
    ),
    Signature(b"SQLite format 3", "an SQLite database", "Export its table as CSV."),
    Signature(b"\x93NUMPY", "a NumPy array", "Save it as CSV or Parquet, with names of columns."),
    Signature(b"\x80\x02", "a Python pickle", "Save its table as Parquet."),
    Signature(b"\x80\x03", "a Python pickle", "Save its table as Parquet."),
    Signature(b"\x80\x04", "a Python pickle", "Save its table as Parquet."),
    Signature(b"\x80\x05", "a Python pickle", "Save its table as Parquet."),
    Signature(b"%PDF-", "a PDF", "Save its table as CSV."),
    Signature(
        b"\x89PNG\r\n\x1a\n",
        "a picture",
        "Give the folder that it is in, or a table with its name.",
    ),
    Signature(
        b"\xff\xd8\xff", "a picture", "Give the folder that it is in, or a table with its name."
    ),
    Signature(
        b"version https://git-lfs",
        "a pointer of Git LFS",
        "Fetch the file itself with `git lfs pull`.",
    ),
    Signature(b"<!doctype html", "a web page", _FETCH),
    Signature(b"<html", "a web page", _FETCH),
)


def signature_of(content: bytes) -> Signature | None:
    """What kind of file begins with these bytes, where that can be told; None for plain text."""
    head = content[:HEAD]
    if head.startswith(b"PK\x03\x04"):
        return _of_zip(head)
    lower = head.lstrip()[:64].lower()
    for known in SIGNATURES:
        if head.startswith(known.begins) or (
            known.begins.startswith(b"<") and lower.startswith(known.begins)
        ):
            return known
    return None


def _of_zip(head: bytes) -> Signature:
    if b"[Content_Types].xml" in head or b"xl/" in head[:200]:
        return Signature(b"PK", "an Excel workbook", _SAVE)
    if b"opendocument.spreadsheet" in head:
        return Signature(b"PK", "an OpenDocument spreadsheet", _SAVE)
    if b".npy" in head[:200]:
        return Signature(
            b"PK", "NumPy arrays", "Save them as CSV or Parquet, with names of columns."
        )
    return Signature(b"PK", "a zip archive", _UNPACK)


def uncompressed(content: bytes, file: str, form: str) -> bytes:
    """The same bytes, decompressed where the name of the file says that they are compressed.

    Raises UserError for a file of another kind than its name or data.format says.
    """
    import pyarrow as pa

    ways = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
    ending = next((ending for ending in ways if file.lower().endswith(ending)), None)
    if ending is not None:
        signature = signature_of(content)
        if signature is None or signature.ending != ending:
            if signature is None:
                got = "plain text"
            else:
                got = signature.what
            if signature is None:
                advice = "Rename it without that ending."
            else:
                advice = signature.advice
            raise UserError(
                f"{file}: expected a file compressed as its ending {ending} says, got {got}. "
                f"{advice}"
            )
        try:
            content = pa.CompressedInputStream(arrow_stream(content), ways[ending]).read()
        except OSError as error:
            raise UserError(
                f"{file}: cannot be decompressed ({' '.join(str(error).split())[:120]}), so it is "
                "damaged or cut off. Fetch it again."
            ) from None
    refuse_others(content, file, form)
    return content


def refuse_others(content: bytes, file: str, form: str) -> None:
    """Raises UserError where the bytes are of a file of a known kind that is no text."""
    signature = signature_of(content)
    if signature is not None:
        raise UserError(f"{file}: expected {form}, got {signature.what}. {signature.advice}")


def arrow_stream(content: bytes) -> "pa.BufferReader":
    """A stream of these bytes, copied into memory that Arrow owns.

    Arrow's threads release the memory that they read from a moment after the reader has returned or
    failed. To release memory of Python they take the interpreter's lock. An interpreter that is
    about to exit refuses it, and the process is aborted ("terminate called without an active
    exception", status 134).
    """
    import pyarrow as pa

    memory = pa.allocate_buffer(len(content))
    pa.FixedSizeBufferWriter(memory).write(content)
    return pa.BufferReader(memory)


def check_encoding(encoding: str) -> None:
    """Raises UserError for a name that no encoding of texts has."""
    try:
        "".encode(encoding)
    except (LookupError, ValueError, UnicodeError):
        raise UserError(
            "data.encoding: expected the name of an encoding, such as utf8, latin1, cp1252 or "
            f"utf-16, got '{encoding}'. Correct it."
        ) from None


def decoded(content: bytes, encoding: str, file: str) -> str:
    """The text of a file: by its byte order mark where it has one, else by `encoding`.

    Raises UserError, naming the file and the line, for bytes that are no text of that encoding.
    """
    for mark, named in MARKS:
        if content.startswith(mark):
            content, encoding = content[len(mark) :], named
            break
    else:
        _refuse_unmarked(content, encoding, file)
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(
            f"{file}: line {line}: expected text in {encoding}, got the byte "
            f"0x{content[error.start]:02x}. Set data.encoding to that of the file, such as latin1 "
            "or cp1252."
        ) from None
    return text.removeprefix("\ufeff")


def _refuse_unmarked(content: bytes, encoding: str, file: str) -> None:
    """UTF-16 without a byte order mark is valid UTF-8 too: every other byte of what is English in
    it is 0.
    """
    if codecs.lookup(encoding).name.startswith(("utf-16", "utf-32")):
        return
    head = content[:HEAD]
    zeros = [head[start::2].count(0) / max(1, len(head[start::2])) for start in (0, 1)]
    if max(zeros) < 0.3:
        return
    if zeros[0] > zeros[1]:
        meant = "utf-16-be"
    else:
        meant = "utf-16-le"
    raise UserError(
        f"{file}: expected text in {encoding}, got bytes of which every other one is 0, as {meant} "
        f"has. Set data.encoding: {meant}."
    )
