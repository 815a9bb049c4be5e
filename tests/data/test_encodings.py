"""Texts of any encoding, files under wrong names, and delimiters: the right value, or one sentence that helps."""

import bz2
import gzip
import lzma
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raymtl.data import Files
from raymtl.data.tables.delimited import delimiter_of
from raymtl.types import UserError

CITIES = ("Zürich", "Genève", "Łódź", "北京")
WESTERN = ("Zürich", "Genève", "Malmö", "Über")


def rows(header: str, cities: tuple[str, ...]) -> str:
    return f"{header},x,y\n" + "".join(
        f"{cities[i % 4]},{i / 7:.3f},{i % 3 * 1.5}\n" for i in range(60)
    )


def read(path: Path, **values: object) -> Files:
    return Files.model_validate(
        {"path": str(path), "tasks": {"y": {"kind": "regression"}}, **values}
    ).resolve()


@pytest.mark.parametrize(
    "encoding",
    ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"],
)
@pytest.mark.parametrize("said", ["utf8", "latin1"])
def test_a_byte_order_mark_says_the_encoding(tmp_path: Path, encoding: str, said: str) -> None:
    mark = "" if encoding in ("utf-8-sig", "utf-16", "utf-32") else "\ufeff"
    (tmp_path / "t.csv").write_bytes((mark + rows("città", CITIES)).encode(encoding))
    found = read(tmp_path / "t.csv", encoding=said).found
    assert [column.column for column in found.columns] == ["città", "x"]
    assert set(found.columns[0].categories) == set(CITIES)


@pytest.mark.parametrize(
    ("encoding", "name"),
    [("latin1", "latin1"), ("cp1252", "windows-1252"), ("utf-16-le", "utf-16-le")],
)
def test_given_encodings_hold_for_names_and_values(
    tmp_path: Path, encoding: str, name: str
) -> None:
    (tmp_path / "t.csv").write_bytes(rows("größe", WESTERN).encode(encoding))
    found = read(tmp_path / "t.csv", encoding=name).found
    assert found.columns[0].column == "größe" and set(found.columns[0].categories) == set(WESTERN)


@pytest.mark.parametrize("ending", [".csv", ".arff"])
def test_a_wrong_encoding_names_its_line(tmp_path: Path, ending: str) -> None:
    """With the file and the key."""
    path = tmp_path / f"t{ending}"
    path.write_bytes(rows("größe", WESTERN).encode("latin1"))
    with pytest.raises(
        UserError,
        match=rf"t{ending}: line 1: expected text in utf8, got the byte 0xf6. Set data.enc",
    ):
        read(path)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf16_without_a_mark_is_told(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "t.csv").write_bytes(rows("city", CITIES).encode(encoding))
    with pytest.raises(
        UserError, match=rf"t.csv: expected text in utf8, .* Set data.encoding: {encoding}\."
    ):
        read(tmp_path / "t.csv")
    assert set(read(tmp_path / "t.csv", encoding=encoding).found.columns[0].categories) == set(
        CITIES
    )


@pytest.mark.parametrize("name", ["windows1252x", "", "hex", "rot13", "utf 8x", "a\0b"])
def test_a_name_that_is_no_encoding_is_told(tmp_path: Path, name: str) -> None:
    (tmp_path / "t.csv").write_text(rows("city", CITIES))
    with pytest.raises(
        UserError, match=r"data.encoding: expected the name of an encoding, such as utf8"
    ):
        read(tmp_path / "t.csv", encoding=name)


ARFF = "% made by hand\n@RELATION 'r s'\n@ATTRIBUTE größe numeric\n@attribute 'k l' {ä,'b, c',\"d\\'e\"}\n@attribute t string\n@attribute y real\n@DATA\n"


@pytest.mark.parametrize("encoding", ["utf8", "latin1", "utf-16"])
def test_arff_is_read_in_its_encoding(tmp_path: Path, encoding: str) -> None:
    classes = ("ä", "'b, c'", '"d\\\'e"')
    lines = "".join(
        f"{i / 3}, {classes[i % 3]}, 'word w{i % 5}',{'?' if i == 3 else i * 2.5}\n"
        for i in range(60)
    )
    (tmp_path / "t.arff").write_bytes((ARFF + lines + "% the end\n").encode(encoding))
    source = read(tmp_path / "t.arff", encoding="latin1" if encoding == "latin1" else "utf8")
    columns = {column.column: column for column in source.found.columns}
    assert columns["größe"].role == "number" and set(columns["k l"].categories) == {
        "ä",
        "b, c",
        "d'e",
    }
    arrays = source.load()
    np.testing.assert_allclose(np.delete(arrays["target/y"], 3), np.delete(np.arange(60) * 2.5, 3))
    assert arrays["mask/y"].sum() == 59


def test_every_form_of_arff_is_read(tmp_path: Path) -> None:
    """Sparse, by tabs and in gzip."""
    head = "@relation r\n@attribute a numeric\n@attribute k {u,v}\n@attribute y numeric\n@data\n"
    lines = "".join(f"{{0 {i},{'1 v, ' if i % 2 else ''}2 {i * 2}}}\n" for i in range(1, 60))
    (tmp_path / "s.arff.gz").write_bytes(gzip.compress((head + lines).encode()))
    found = read(tmp_path / "s.arff.gz")
    assert found.found.columns[1].categories == ("u", "v")
    np.testing.assert_allclose(found.load()["target/y"], 2.0 * np.arange(1, 60))
    (tmp_path / "t.arff").write_text(head + "".join(f"{i}\tu\t{i * 2}\n" for i in range(60)))
    np.testing.assert_allclose(read(tmp_path / "t.arff").load()["target/y"], 2.0 * np.arange(60))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (
            "@relation r\n@attribute a numeric\n@attribute y numeric\n@data\n1,2\n1,2,3\n",
            "line 6: expected 2 values, got 3",
        ),
        ("@relation r\n@attribute a\n@data\n", "line 2: expected a type of 'a'"),
        (
            "@relation r\n@attribute a numeric\n@attribute y numeric\n@data\nx,2\n",
            "column 'a': expected a number, .*'x'",
        ),
        ("a,b\n1,2\n", "line 1: expected @attribute or @data"),
        ("@relation r\n@attribute a {u,v\n@data\n", "line 2: expected the classes of 'a' between"),
    ],
)
def test_arff_that_is_none_is_told(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "t.arff").write_text(content)
    with pytest.raises(UserError, match=rf"t.arff: {says}"):
        read(tmp_path / "t.arff")


def zipped(name: str, content: bytes) -> bytes:
    import io

    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr(name, content)
    return made.getvalue()


TEXT = rows("city", CITIES).encode()
OTHERS = {
    "gzip": (gzip.compress(TEXT), "a file compressed by gzip. Rename it so that it ends in .gz"),
    "bzip2": (bz2.compress(TEXT), "a file compressed by bzip2. Rename it so that it ends in .bz2"),
    "xz": (lzma.compress(TEXT), "a file compressed by xz. Unpack it"),
    "zip": (zipped("d.csv", TEXT), "a zip archive. Unpack it, and give the path of what is in it"),
    "xlsx": (zipped("[Content_Types].xml", b"<xml/>"), "an Excel workbook. Save the sheet as CSV"),
    "ods": (
        zipped("mimetype", b"application/vnd.oasis.opendocument.spreadsheet"),
        "an OpenDocument spreadsheet. Save the sheet as CSV",
    ),
    "xls": (
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(500),
        "an old Excel workbook. Save the sheet as CSV",
    ),
    "7z": (b"7z\xbc\xaf\x27\x1c" + bytes(100), "a 7z archive. Unpack it"),
    "html": (b"\n<!DOCTYPE html><html>404</html>", "a web page. Fetch the file again"),
    "lfs": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n",
        "a pointer of Git LFS. Fetch the file",
    ),
    "pickle": (b"\x80\x04\x95" + bytes(20), "a Python pickle. Save its table as Parquet"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(100), "an HDF5 file. Save its table"),
}


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("name", ["t.csv", "t.arff", "t.csv.zip", "t"])
def test_other_kinds_of_files_are_one_sentence(tmp_path: Path, kind: str, name: str) -> None:
    content, says = OTHERS[kind]
    (tmp_path / name).write_bytes(content)
    for more in ({}, {"format": "csv"}):
        with pytest.raises(UserError, match=says) as raised:
            read(tmp_path / name, **more)
        assert str(raised.value).isprintable() and name in str(raised.value)


def test_compressed_files_are_read_by_their_ending(tmp_path: Path) -> None:
    """Without one it is told."""
    for ending, content in (
        (".gz", gzip.compress(TEXT)),
        (".bz2", bz2.compress(TEXT)),
        (".GZ", gzip.compress(TEXT)),
    ):
        (tmp_path / f"t.csv{ending}").write_bytes(content)
        assert read(tmp_path / f"t.csv{ending}", format="csv").found.rows == 60
    (tmp_path / "plain.csv.gz").write_bytes(TEXT)
    with pytest.raises(
        UserError,
        match=r"expected a file compressed as its ending .gz says, got plain text. Rename",
    ):
        read(tmp_path / "plain.csv.gz")
    (tmp_path / "cut.csv.gz").write_bytes(gzip.compress(TEXT)[:200])
    with pytest.raises(
        UserError, match=r"cut.csv.gz: cannot be decompressed .* damaged or cut off"
    ):
        read(tmp_path / "cut.csv.gz")


def test_parquet_called_csv_is_named(tmp_path: Path) -> None:
    """It is read where `format` says so."""
    pq.write_table(
        pa.table({"x": np.arange(60) / 7, "y": np.arange(60) % 3 * 1.5}), tmp_path / "t.csv"
    )
    with pytest.raises(
        UserError, match=r"got a Parquet file. Rename it so that .* or set data.format: parquet"
    ):
        read(tmp_path / "t.csv")
    assert read(tmp_path / "t.csv", format="parquet").found.rows == 60


@pytest.mark.parametrize(
    ("text", "delimiter"),
    [
        ("a,b\n1,2\n", ","),
        ('"a, b";"c, d, e";y\n1;2;3\n', ";"),
        ('"a; b","c; d; e"\n1,2\n', ","),
        ("a\tb, c, d\te\n1\tx\t2\n", "\t"),
        ("a;b\n1,5;2,5\n", ";"),
        ("a|b\nx, y|2\n", "|"),
        ('a,b\n"x; y\n;;",2\n', ","),
        ("a,b;c\nx,1;2;3\ny,4\n", ","),
        ('size "in";y\n1;2\n', ";"),
        ("y\n1\n", ","),
    ],
)
def test_the_delimiter_agrees_in_header_and_rows(text: str, delimiter: str) -> None:
    """Outside of quotes."""
    assert delimiter_of(text) == delimiter


def test_a_header_with_quoted_commas_is_read(tmp_path: Path) -> None:
    head = '"size, m2";"rent, net, EUR";y\n'
    (tmp_path / "t.csv").write_text(
        head + "".join(f"{i / 7};{i};{i % 3 * 1.5}\n" for i in range(60))
    )
    assert [column.column for column in read(tmp_path / "t.csv").found.columns] == ["size, m2"]


@pytest.mark.parametrize("name", ["cost$1", "$HOME", "a$b$c", "${x}"])
def test_folder_names_may_hold_dollars(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "d.csv").write_bytes(TEXT)
    monkeypatch.chdir(tmp_path)
    for path in (f"{name}/d.csv", f"{name}/*.csv", name):
        source = Files.model_validate(
            {"path": path, "tasks": {"y": {"kind": "regression"}}}
        ).resolve()
        assert source.found.rows == 60 and len(source.load()["side"]) == 60
    monkeypatch.chdir(tmp_path / name)
    assert (
        Files.model_validate({"path": "d.csv", "tasks": {"y": {"kind": "regression"}}})
        .resolve()
        .found.rows
        == 60
    )
