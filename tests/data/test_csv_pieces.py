"""CSV files in pieces of whole rows: what is read is what the file as a whole says."""

from pathlib import Path
from typing import Any

import pytest

from raymtl.data.tables.blocks import Reading
from raymtl.data.tables.paths import locate
from raymtl.data.tables.readers import open_table
from raymtl.types import UserError

ROWS = [
    ("plain", "1"),
    ("two\nlines, and a comma", "2"),
    ('he said ""yes""\n', "3"),
    ("", ""),
    ("a long one " * 30, "4"),
    ("5 inches", "6"),
    ("ümlaut", "7"),
]


def written(path: Path, rows: int, end: str = "\n", begin: str = "") -> Path:
    """Rows over and over; the first column is in quotes but for some."""
    lines = [begin + "text,number"]
    for number in range(rows):
        text, value = ROWS[number % len(ROWS)]
        if number % len(ROWS) in (1, 2, 4) or number % 2:
            text = f'"{text}"'
        lines.append(f"{text},{value}")
        if number % 5 == 4:
            lines.append("")
    path.write_bytes((end.join(lines) + end).encode())
    return path


def read(path: Path, piece_bytes: int | None, **reading: Any) -> tuple[list[Any], list[Any]]:
    """All rows, and (first row, rows) of each block."""
    settings = {"missing_values": (), "delimiter": None, "encoding": "utf8", **reading}
    about = Reading(**settings, piece_bytes=piece_bytes)
    table = open_table(locate(str(path), "data.path"), "csv", about, "data.path")
    rows = [row for block in table.blocks for row in table.raw(block).to_pylist()]
    return rows, [(block.start, block.rows) for block in table.blocks]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("begin", ["", "\ufeff", "\n\n"])
@pytest.mark.parametrize("piece_bytes", [1, 64, 333, 2000])
def test_pieces_together_are_the_file(
    tmp_path: Path, piece_bytes: int, begin: str, end: str
) -> None:
    path = written(tmp_path / "t.csv", 60, end, begin)
    whole, _ = read(path, None)
    rows, blocks = read(path, piece_bytes)
    assert rows == whole and len(rows) == 60
    assert len(blocks) > 1 and sum(size for _, size in blocks) == 60
    assert [start for start, _ in blocks] == [
        sum(size for _, size in blocks[:number]) for number in range(len(blocks))
    ]


def test_pieces_have_the_given_names(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("".join(f"{number};{number / 2}\n" for number in range(100)))
    rows, blocks = read(path, 100, columns=("a", "b"))
    assert len(blocks) > 3 and rows == [
        {"a": str(number), "b": str(number / 2)} for number in range(100)
    ]


def test_what_cannot_be_cut_is_read_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes("a,b\n1,2\n3,4\n".encode("utf-16"))
    assert read(path, 4)[1] == [(0, 2)]


def test_a_row_of_too_few_cells_is_named(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("a,b\n" + "1,2\n" * 50 + "3\n" + "1,2\n" * 50)
    with pytest.raises(UserError, match=r"t\.csv, from row \d+ on: cannot be read as csv"):
        read(path, 40)
