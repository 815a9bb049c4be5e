"""Files as people write them: what is in the cells is learned from, and what was decided about it is noted."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raymtl.data.tables import Files
from raymtl.data.tables.new_rows import read_unseen
from raymtl.types import UserError
from tests.data.own import write_csv

ROWS = 60
X = [round(float(value), 3) for value in np.random.default_rng(0).normal(size=ROWS)]
Y = [round(1000 * value + 2000.5, 1) for value in X]
CLASSES = ["p", "q", "q"] * (ROWS // 3)


def german(value: float) -> str:
    return f"{value:,}".replace(",", "t").replace(".", ",").replace("t", ".")


def source(path: Path, tasks: dict[str, Any] | None = None, **more: Any) -> Files:
    return Files.model_validate({"path": str(path), "tasks": tasks or {"y": {}}, **more}).resolve()


def notes(files: Files) -> list[str]:
    return [str(note) for note in files.notes(files.load())]


def column(files: Files, name: str) -> np.ndarray:
    """The numbers of a column in its own unit."""
    place = [one.column for one in files.found.columns].index(name)
    one = files.found.columns[place]
    start = sum(before.size for before in files.found.columns[:place])
    found: np.ndarray = files.load()["inputs"][:, start] * one.std + one.mean
    return found


def test_german_numbers_equal_plain_ones(tmp_path: Path) -> None:
    days = [f"2024-{1 + i % 12:02d}-{1 + i % 28:02d}" for i in range(ROWS)]
    plain = {"x": X, "when": days, "y": Y}
    written = {
        "x": [german(value) for value in X],
        "when": [".".join(reversed(day.split("-"))) for day in days],
        "y": [f"{german(value)} €" for value in Y],
    }
    one = source(write_csv(tmp_path / "plain.csv", plain))
    other = source(write_csv(tmp_path / "german.csv", written, delimiter=";"))
    assert [c.model_dump() for c in one.found.columns] == [
        c.model_dump() for c in other.found.columns
    ]
    arrays, same = one.load(), other.load()
    for key in ("inputs", "target/y", "side"):
        np.testing.assert_array_equal(arrays[key], same[key])
    assert notes(one) == []
    assert notes(other) == [
        "column 'x': numbers with a decimal comma: '0,126' is read as 0.126 (data.decimal)",
        "column 'when': dates in the order day, month, year: '01.01.2024' is read as 2024-01-01 (data.dates)",
        "task 'y': numbers with a decimal comma and '.' between groups of digits and '€' beside them: '2.126,5 €' is "
        "read as 2126.5 (data.decimal)",
    ]
    assert set(other.found.forms) == {"x", "when"} | {"y"} and not one.found.forms.keys() - {"when"}


def test_new_rows_are_read_as_trained_ones(tmp_path: Path) -> None:
    codes = ["01234", "00501", "10115"] * (ROWS // 3)
    content = {"x": [german(value) for value in X], "zip": codes, "y": [f"{value}%" for value in Y]}
    files = source(write_csv(tmp_path / "d.csv", content, delimiter=";"))
    new = {
        "x": ["1,5", "2"],
        "zip": ["10115", "99999"],
        "y": ["7%", ""],
    }  # none of which says how it is written
    unseen = read_unseen(files, str(write_csv(tmp_path / "new.csv", new, delimiter=";")))
    first = files.found.columns[0]
    np.testing.assert_allclose(unseen.inputs[:, 0] * first.std + first.mean, [1.5, 2], rtol=1e-6)
    np.testing.assert_array_equal(unseen.inputs[:, 1:], [[0, 0, 1, 0], [0, 0, 0, 1]])
    assert unseen.targets["y"][0] == pytest.approx(7) and unseen.masks["y"].tolist() == [
        True,
        False,
    ]
    odd = write_csv(tmp_path / "odd.csv", {"x": ["1,5", "1.5"], "zip": ["1", "2"]}, delimiter=";")
    with pytest.raises(
        UserError,
        match=r"odd.csv: row 1, column 'x': expected a number with the decimal sign ',', got",
    ):
        read_unseen(files, str(odd))


def test_streams_read_as_memory_does(
    tmp_path: Path,
) -> None:
    """They name the cell that they cannot read."""
    for part in range(4):
        rows = range(part * ROWS, (part + 1) * ROWS)
        content = {
            "x": [german(i / 7) for i in rows],
            "code": [f"0{i % 3}" for i in rows],
            "y": [i / 2 for i in rows],
        }
        write_csv(tmp_path / "d" / f"{part}.csv", content, delimiter=";")
    files = source(tmp_path / "d", in_memory_mb=0.005, fit_rows=ROWS, shots=2, queries=2)
    assert files.found.pool is not None and files.found.forms["x"].decimal == ","
    assert [c.role for c in files.found.columns] == ["number", "category"]
    assert np.isfinite(files.load()["inputs"]).all()
    broken = next(part for part in range(4) if part not in _parts_seen(files))
    content = {"x": ["1,5", "oops"], "code": ["01", "02"], "y": [1.5, 2.5]}
    write_csv(tmp_path / "d" / f"{broken}.csv", content, delimiter=";")
    again = files.model_copy()
    with pytest.raises(
        UserError, match=rf"{broken}.csv: row 1, column 'x': expected a number .*, got 'oops'"
    ):
        again.load()


def _parts_seen(files: Files) -> set[int]:
    """The parts that the findings are made of: those drawn first."""
    order = np.random.default_rng(files.split.seed).permutation(4).tolist()
    return {order[0]}


@pytest.mark.parametrize(
    ("labels", "task", "kind", "classes"),
    [
        (
            ["None", "Minor", "Severe"],
            {"classes": ["None", "Minor", "Severe"]},
            "classification",
            None,
        ),
        (["01", "02", "02"], {"classes": ["01", "02"]}, "binary", None),
        (["01", "02", "10"], {}, "classification", ("01", "02", "10")),
        ([" yes", "no ", "yes"], {}, "binary", ("no", "yes")),
        (["1.0", "2.0", "3.0"], {}, "classification", ("1", "2", "3")),
        (["1", "2", "3"], {"classes": [1, 2, 3]}, "classification", ("1", "2", "3")),
        (["2", "1", "1"], {}, "classification", ("1", "2")),
        (["5%", "10%", "15%"], {}, "classification", ("10%", "15%", "5%")),
        (["True", "False", "True"], {}, "binary", ("false", "true")),
        (["True", "False", "True"], {"classes": [True, False]}, "binary", ("true", "false")),
    ],
)
def test_classes_are_as_they_are_written(
    tmp_path: Path,
    labels: list[str],
    task: dict[str, Any],
    kind: str,
    classes: tuple[str, ...] | None,
) -> None:
    files = source(write_csv(tmp_path / "d.csv", {"x": X, "y": labels * (ROWS // 3)}), {"y": task})
    fitted = files.found.tasks["y"]
    assert (fitted.kind, fitted.classes) == (kind, classes or tuple(task["classes"]))
    assert files.load()["mask/y"].all()


def test_codes_misread_by_yaml_are_told(tmp_path: Path) -> None:
    """So is what a wrong key leaves."""
    path = write_csv(tmp_path / "d.csv", {"x": X, "y": ["01", "02", "02"] * (ROWS // 3)})
    with pytest.raises(UserError, match=r"got '01'. YAML reads 01 as 1: put the classes in quotes"):
        source(path, {"y": {"classes": [1, 2]}})
    path = write_csv(tmp_path / "e.csv", {"x": X, "n": list(range(0, 2 * ROWS, 2)), "y": CLASSES})
    told = notes(source(path, decimal=","))
    assert any("cells are numbers as data.decimal says, and not '0.126'" in note for note in told)
    path = write_csv(tmp_path / "f.csv", {"x": X, "y": ["null", "full"] * (ROWS // 2)})
    with pytest.raises(
        UserError,
        match=r"30 of 60 labels are 'null', which counts as missing. Name it in data.tasks.y",
    ):
        source(path)


def test_labels_that_count_as_missing_are_noted(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "d.csv", {"x": X, "y": ["None", "Minor", "Severe"] * (ROWS // 3)})
    assert notes(source(path)) == [
        "task 'y': 20 of 60 labels are 'None', which counts as missing unless `classes` names it (data.missing_values)"
    ]


@pytest.mark.parametrize(
    ("cells", "became"),
    [
        ([str(value) for value in X], "it is left out"),
        ([str(i % 10) for i in range(ROWS)], "it is one-hot"),
        ([f"2024-01-{1 + i % 28:02d}" for i in range(ROWS)], "it is one-hot"),
    ],
)
def test_the_cell_deciding_for_text_is_named(tmp_path: Path, cells: list[str], became: str) -> None:
    cells = [*cells]
    cells[7] = "unknown"
    content = {"x": cells, "a": X, "y": CLASSES}
    (note,) = notes(source(write_csv(tmp_path / "d.csv", content)))
    assert "59 of 60 cells are" in note and "'unknown'" in note and "d.csv: row 7" in note
    assert note.endswith(f"so {became} (data.missing_values)")
    repaired = source(tmp_path / "d.csv", missing_values=["", "unknown"], missing_inputs="mean")
    assert repaired.found.columns[0].role == "number" and notes(repaired) == []
    with pytest.raises(
        UserError, match=r"d.csv: row 7, column 'x': expected a (number|date).*, got 'unknown'"
    ):
        source(tmp_path / "d.csv", inputs={"x": "number"})
    alone = {"x": cells, "y": CLASSES}
    if became == "it is left out":
        with pytest.raises(
            UserError, match=r"'x' \(.*59 of 60 cells are numbers, but not 'unknown' \(.*row 7\)\)"
        ):
            source(write_csv(tmp_path / "alone.csv", alone))


def test_labels_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    """A doubt names its key."""
    labels = [str(value) for value in Y]
    labels[9] = "n.a."
    path = write_csv(tmp_path / "d.csv", {"x": X, "y": labels})
    for task in ({}, {"kind": "regression"}):
        with pytest.raises(
            UserError, match=r"d.csv: row 9, column 'y': expected a number.* got 'n.a.'"
        ):
            source(path, {"y": task})
    doubtful = {"x": [i % 7 for i in range(ROWS)], "y": [f"{i + 1},{i + 100}" for i in range(ROWS)]}
    path = write_csv(tmp_path / "e.csv", doubtful, delimiter="|")
    with pytest.raises(UserError, match=r"'1,100' can be 1.1 or 1100. Say data.decimal"):
        source(path)
    assert source(path, decimal=".").load()["target/y"][0] == 1100
    assert source(path, decimal=",").load()["target/y"][0] == pytest.approx(1.1)


def test_codes_with_leading_zeros_are_texts(tmp_path: Path) -> None:
    """Unless they are called numbers."""
    path = write_csv(
        tmp_path / "d.csv", {"zip": ["01234", "00501", "10115"] * (ROWS // 3), "a": X, "y": CLASSES}
    )
    files = source(path)
    assert files.found.columns[0].categories == ("00501", "01234", "10115")
    assert "codes that begin with 0, such as '01234'" in notes(files)[0]
    numbers = source(path, inputs={"zip": "number", "a": "number"})
    np.testing.assert_allclose(column(numbers, "zip")[:3], [1234, 501, 10115], rtol=1e-5)


def test_headerless_columns_can_be_named(tmp_path: Path) -> None:
    lines = "".join(f"{x},{i % 2},{'pq'[i % 2]}\n" for i, x in enumerate(X))
    (tmp_path / "d.csv").write_text(lines)
    files = source(tmp_path / "d.csv", columns=["a", "b", "y"])
    assert files.found.rows == ROWS and [c.column for c in files.found.columns] == ["a", "b"]
    np.testing.assert_allclose(column(files, "a"), X, rtol=1e-4, atol=1e-6)
    with pytest.raises(
        UserError,
        match=r"data.columns: .*d.csv: expected 3 names, as many as there are columns, got 2",
    ):
        source(tmp_path / "d.csv", columns=["a", "y"])
    (tmp_path / "g.csv").write_text("a,b,y\n" + lines)
    with pytest.raises(
        UserError, match=r"data.columns: .*g.csv: expected no header, got one of these names"
    ):
        source(tmp_path / "g.csv", columns=["a", "b", "y"])
    (tmp_path / "e.csv").write_text(
        "1,1,0\n" + "".join(f"{x},{i},{i % 2}\n" for i, x in enumerate(X))
    )
    with pytest.raises(
        UserError,
        match=r"got '1' twice. Where the file has no header, name its columns in data.columns",
    ):
        source(tmp_path / "e.csv")
    (tmp_path / "f.csv").write_text(
        "0.5,1.25,p\n" + "".join(f"{x},{x},{'pq'[i % 2]}\n" for i, x in enumerate(X))
    )
    told = notes(source(tmp_path / "f.csv", {"p": {}}))
    assert any("the header looks like a row of data: '0.5', '1.25', 'p'" in note for note in told)


def test_parts_with_numbers_and_texts_are_one_column(tmp_path: Path) -> None:
    for name, cells in (
        ("train", [str(10000 + i % 5) for i in range(ROWS)]),
        ("test", ["SW1"] + ["10001"] * 59),
    ):
        write_csv(tmp_path / f"{name}.csv", {"zip": cells, "a": X, "y": CLASSES})
    paths = {name: str(tmp_path / f"{name}.csv") for name in ("train", "test")}
    files = Files.model_validate({"path": paths, "tasks": {"y": {}}}).resolve()
    assert files.found.columns[0].role == "category"
    assert "119 of 120 cells are numbers, but not 'SW1'" in notes(files)[0]


def test_texts_of_parquet_are_read_alike_and_noted(tmp_path: Path) -> None:
    content = {
        "x": [f"{value:.3f}".replace(".", ",") for value in X],
        "n": [str(v) for v in Y],
        "y": CLASSES,
    }
    pq.write_table(pa.table(content), tmp_path / "d.parquet")
    files = source(tmp_path / "d.parquet")
    assert [c.role for c in files.found.columns] == ["number", "number"]
    np.testing.assert_allclose(column(files, "x"), X, rtol=1e-4, atol=1e-6)
    assert len(notes(files)) == 2
    kept = source(tmp_path / "d.parquet", inputs={"x": "text", "n": "text"})
    assert [c.role for c in kept.found.columns] == ["text", "text"]


def test_plain_numbers_need_no_word_in_the_configuration(tmp_path: Path) -> None:
    files = source(write_csv(tmp_path / "d.csv", {"x": X, "n": list(range(ROWS)), "y": Y}))
    assert files.found.forms == {} and files.found.tasks["y"].forms == {}
