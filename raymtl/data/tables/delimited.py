"""CSV: text whose cells stand between delimiters."""

import csv as csv_module
import io
import re

import pyarrow as pa

from raymtl.data.tables.blocks import Reading
from raymtl.data.tables.contents import arrow_stream
from raymtl.data.tables.paths import reason
from raymtl.types import UserError

SAMPLED = 64_000  # characters of a CSV file that its delimiter is found by
DELIMITERS = ("\t", ";", "|", ",")  # the comma last, for it stands in numbers and texts too


def read_csv(text: str, file: str, reading: Reading) -> pa.Table:
    """The cells as they are written: all columns are texts."""
    from pyarrow import csv

    if not text.strip():
        raise UserError(f"{file}: expected a header and rows, got an empty file.")
    delimiter = reading.delimiter or delimiter_of(text)
    try:
        first = _first_row(text, delimiter)
        names = list(reading.columns) or first
        if reading.columns and names == first:
            raise UserError(
                f"data.columns: {file}: expected no header, got one of these names. Leave "
                "data.columns away."
            )
        if len(names) != len(first):
            raise UserError(
                f"data.columns: {file}: expected {len(first)} names, as many as there are columns, "
                f"got {len(names)}."
            )
        table = csv.read_csv(
            arrow_stream(text.encode()),
            read_options=csv.ReadOptions(column_names=list(reading.columns) or None),
            parse_options=csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            convert_options=csv.ConvertOptions(
                null_values=[],
                strings_can_be_null=False,
                column_types=dict.fromkeys(names, pa.string()),
            ),
        )
    except (pa.ArrowInvalid, csv_module.Error) as error:
        raise UserError(
            f"{file}: cannot be read as csv with the delimiter {delimiter!r} ({reason(error)}). "
            "Correct the row, or set data.delimiter."
        ) from None
    return table.replace_schema_metadata({DELIMITER: delimiter.encode()})


DELIMITER = b"delimiter"
"""In the metadata of a table that was read from a text file."""


def _first_row(text: str, delimiter: str) -> list[str]:
    rows = csv_module.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    return next((row for row in rows if row), [])


def delimiter_of(text: str) -> str:
    """The character between the values of a CSV text: the one that the header and each of the first
    rows have as often.

    What is in quotes does not count.
    """
    sample = text[:SAMPLED]
    lines = re.sub(r'(?:^|(?<=[,;|\t\n\r]))"(?:[^"]|"")*"', '""', sample).splitlines()
    if len(text) > SAMPLED:
        lines = lines[:-1] or lines
    lines = [line for line in lines if line.strip()][:100]
    header, *rows = lines or [""]
    candidates = [mark for mark in DELIMITERS if mark in header]
    if not candidates:
        # The header is one name: a mark in no row divides them; the comma is the usual one.
        text_of_rows = "".join(rows)
        return next((mark for mark in (",", *DELIMITERS) if mark not in text_of_rows), ",")
    regular = []
    for mark in candidates:
        if all(row.count(mark) == header.count(mark) for row in rows):
            regular.append(mark)
    return max(regular or candidates, key=header.count)
