"""Nothing in a table goes away in silence: what was left out, never learned or seen before is a note with its key."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raymtl.config import parse
from raymtl.data.tables import Files
from raymtl.data.tables.header import header_note
from raymtl.types import UserError
from tests.data.own import write_csv

ROWS = 60


def numbers(seed: int = 0, rows: int = ROWS) -> list[float]:
    return [round(float(value), 3) for value in np.random.default_rng(seed).normal(size=rows)]


def source(path: Path | dict[str, str], tasks: dict[str, Any] | None = None, **more: Any) -> Files:
    place = (
        {key: str(value) for key, value in path.items()} if isinstance(path, dict) else str(path)
    )
    return Files.model_validate({"path": place, "tasks": tasks or {"y": {}}, **more}).resolve()


def notes(files: Files) -> list[str]:
    return [str(note) for note in files.notes(files.load())]


def halves(folder: Path, train: dict[str, list[Any]], test: dict[str, list[Any]]) -> dict[str, str]:
    return {
        "train": str(write_csv(folder / "train.csv", train)),
        "test": str(write_csv(folder / "test.csv", test)),
    }


def test_classes_unseen_in_training_are_named(tmp_path: Path) -> None:
    """And counted."""
    labels = ["no", "yes"] * (ROWS // 2)
    paths = halves(
        tmp_path,
        {"a": numbers(0), "y": labels},
        {"a": numbers(1), "y": [label.upper() + "." for label in labels]},
    )
    (note,) = notes(source(paths, {"y": {"kind": "classification"}}))
    assert note == (
        "task 'y': the classes 'NO.', 'YES.' are in test (60 rows) and in no row for training; perhaps 'no' is meant, "
        "written in another way (data.split)"
    )
    tags = {"y": {"kind": "multilabel", "separator": ";"}}
    paths = halves(
        tmp_path, {"a": numbers(0), "y": ["p;q"] * ROWS}, {"a": numbers(1), "y": ["p;r"] * ROWS}
    )
    assert any("the class 'r' is in test (60 rows)" in note for note in notes(source(paths, tags)))
    named = {"y": {"kind": "classification", "classes": ["no", "yes", "perhaps"]}}
    path = write_csv(tmp_path / "d.csv", {"a": numbers(), "y": labels})
    assert notes(source(path, named)) == [
        "task 'y': no row has the class 'perhaps' (data.tasks.y.classes)"
    ]


def test_a_target_that_never_changes_is_noted(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "d.csv", {"a": numbers(), "y": [5.5] * ROWS})
    expected = (
        "task 'y': always 5.5 in the rows for training, so there is nothing to learn (data.tasks.y)"
    )
    assert notes(source(path, {"y": {"kind": "regression"}})) == [expected]
    paths = halves(
        tmp_path,
        {"a": numbers(0), "y": ["p"] * ROWS},
        {"a": numbers(1), "y": ["p", "q"] * (ROWS // 2)},
    )
    told = notes(source(paths))
    assert any("every row for training has the class 'p'" in note for note in told)


@pytest.mark.parametrize("by", ["files", "hash"])
def test_columns_constant_in_training_are_omitted(tmp_path: Path, by: str) -> None:
    labels = ["p", "q"] * (ROWS // 2)
    if by == "files":
        data = halves(
            tmp_path,
            {"k": [5] * ROWS, "a": numbers(0), "y": labels},
            {"k": list(range(ROWS)), "a": numbers(1), "y": labels},
        )
        files = source(data)
        expected = "column 'k': always 5 in the rows for training, and 0 to 59 in all, so it is left out (data.inputs)"
        assert expected in notes(files)
    else:  # the only row that differs is not for training under one of these seeds
        path = write_csv(
            tmp_path / "d.csv", {"k": [5] * (ROWS - 1) + [6], "a": numbers(0), "y": labels}
        )
        every = [source(path, split={"seed": seed}) for seed in range(20)]
        files = next(files for files in every if "k" in files.found.left_out)
    assert [column.column for column in files.found.columns] == ["a"]
    arrays = files.load()  # the rows that it was found in are those that are trained on
    train = arrays["inputs"][arrays["side"] == 0]
    assert train.mean() == pytest.approx(0, abs=1e-6) and train.std() == pytest.approx(1, abs=1e-6)
    if by == "files":
        paths = halves(
            tmp_path / "categories",
            {"c": ["red"] * ROWS, "a": numbers(0), "y": labels},
            {"c": ["blue"] * ROWS, "a": numbers(1), "y": labels},
        )
        expected = "column 'c': always red in the rows for training, and blue elsewhere; a model cannot learn what it means (data.inputs)"
        assert expected in notes(source(paths))
        named = source(data, inputs=["k", "a"])
        assert [column.column for column in named.found.columns] == ["k", "a"]
        assert any("a model cannot learn what it means" in note for note in notes(named))


def test_rows_seen_in_training_are_counted(tmp_path: Path) -> None:
    content: dict[str, list[Any]] = {"a": numbers(0), "y": ["p", "q", "q"] * (ROWS // 3)}
    told = notes(source(halves(tmp_path, content, content)))
    assert any(note.startswith("test: 60 of 60 rows are in train or val too") for note in told)
    fresh = {"a": [*numbers(1)[:-1], content["a"][0]], "y": [*content["y"][:-1], content["y"][0]]}
    (note,) = notes(source(halves(tmp_path, content, fresh)))
    assert (
        note.startswith("test: 1 of 60 rows are in train or val too") and "test.csv: row 59" in note
    )
    few: dict[str, list[Any]] = {
        "a": ["red", "blue"] * (ROWS // 2),
        "b": [i // 2 % 5 for i in range(ROWS)],
        "y": ["p", "q", "q"] * (ROWS // 3),
    }  # alike by chance
    assert notes(source(halves(tmp_path, few, few))) == []
    assert notes(source(write_csv(tmp_path / "d.csv", content))) == []


@pytest.mark.parametrize("name", ["", "Unnamed: 0", "index", "__index_level_0__"])
def test_a_data_frames_index_is_omitted(tmp_path: Path, name: str) -> None:
    """Unless it is named."""
    content = {name: [3 * i for i in range(ROWS)], "a": numbers(), "y": ["p", "q"] * (ROWS // 2)}
    path = tmp_path / "d.parquet"
    pq.write_table(pa.table({key: pa.array(values) for key, values in content.items()}), path)
    files = source(path)
    assert [column.column for column in files.found.columns] == ["a"]
    assert notes(files) == [
        f"column '{name}': left out: an index that a data frame left (data.inputs)"
    ]
    assert [column.column for column in source(path, inputs=[name, "a"]).found.columns] == [
        name,
        "a",
    ]


def test_omissions_are_noted_by_reason(tmp_path: Path) -> None:
    content = {
        "id": [f"p{i}" for i in range(ROWS)],
        "name": [f"n{i}" for i in range(ROWS)],
        "one": ["same"] * ROWS,
        "mine": numbers(3),
        "a": numbers(),
        "y": ["p", "q"] * (ROWS // 2),
    }
    told = notes(source(write_csv(tmp_path / "d.csv", content), exclude=["mine"]))
    assert told == [
        "columns 'id', 'name': left out: a name of the row: almost all are different (data.inputs)",
        "column 'one': left out: always the same (data.inputs)",
    ]


def test_classes_too_small_are_noted(tmp_path: Path) -> None:
    """So are groups."""
    sizes = [20] * 15 + [3] * 10
    labels = [f"c{number:02d}" for number, size in enumerate(sizes) for _ in range(size)]
    path = write_csv(tmp_path / "d.csv", {"a": numbers(rows=len(labels)), "y": labels})
    told = notes(source(path, episodes="classes", ways=2, shots=2, queries=5))
    small = [
        int(note.split("task 'y': ")[1].split(" of ")[0])
        for note in told
        if "fewer than 7 rows" in note
    ]
    assert sum(small) == 10 and all(
        "(data.queries)" in note for note in told if "fewer than 7" in note
    )
    groups = [f"g{i // 6}" for i in range(120)] + ["alone"]
    path = write_csv(
        tmp_path / "g.csv", {"a": numbers(rows=121), "y": numbers(1, 121), "g": groups}
    )
    told = notes(source(path, group="g", episodes="groups", shots=2, queries=2))
    assert any("1 of" in note and "never has them: 'alone' (data.group)" in note for note in told)


def test_labels_too_large_to_square_are_refused(tmp_path: Path) -> None:
    labels = [*numbers()[:-1], 1e300]
    path = write_csv(tmp_path / "d.csv", {"a": numbers(), "y": labels})
    with pytest.raises(
        UserError,
        match=r"d.csv: row 59, column 'y': expected a finite number of less than 1e38, got",
    ):
        source(path, {"y": {"kind": "regression"}})


@pytest.mark.parametrize(
    ("header", "columns", "is_data"),
    [
        (["5.1", "3.5", "setosa"], [[4.9, 4.7], [3.0, 3.2], ["setosa", "virginica"]], True),
        (["5", "116", "74", "0"], [[1, 2], [3, 4], [5, 6], [7, 8]], True),
        (["0", "1", "2"], [[1, 2], [3, 4], [5, 6]], False),
        (["country", "1990", "1991", "1992"], [["de", "fr"], [1, 2], [3, 4], [5, 6]], False),
        (["age", "y"], [[1, 2], ["p", "q"]], False),
        (["red", "y"], [["red", "blue"], ["y", "n"]], True),
    ],
)
def test_a_header_that_looks_like_data_is_noted(
    header: list[str], columns: list[Any], is_data: bool
) -> None:
    cells = {
        name: [str(value) for value in values] for name, values in zip(header, columns, strict=True)
    }
    note = header_note("d.csv", cells)
    assert (note is not None) == is_data
    assert note is None or note.key == "data.columns"


def test_two_texts_are_binary(tmp_path: Path) -> None:
    """Learners of classes name the key."""
    path = write_csv(
        tmp_path / "d.csv", {"a": numbers(), "y": ["sick", "well", "sick"] * (ROWS // 3)}
    )
    files = source(path)
    assert files.found.tasks["y"].kind == "binary" and files.class_names("y") == ("sick", "well")
    named = source(path, {"y": {"classes": ["well", "sick"]}})
    assert named.found.tasks["y"].kind == "binary" and named.class_names("y") == ("well", "sick")
    experiment = {
        "data": files.model_dump(mode="json"),
        "encoder": {"name": "mlp"},
        "learner": {"name": "protonet"},
    }
    with pytest.raises(
        UserError, match=r"task 'y' is binary \(its `kind: classification` makes it one"
    ):
        parse(experiment).resolve()
    experiment["data"]["tasks"]["y"]["kind"] = "classification"
    parse(experiment).resolve()


@pytest.mark.parametrize(
    "words", [("no", "yes"), ("N", "Y"), ("False", "TRUE"), ("0", "1"), ("nein", "ja")]
)
def test_yes_no_columns_are_multilabel_flags(tmp_path: Path, words: tuple[str, ...]) -> None:
    truth = np.random.default_rng(0).integers(0, 2, (ROWS, 2))
    content = {
        "a": numbers(),
        "t1": [words[v] for v in truth[:, 0]],
        "t2": ["NY"[v] for v in truth[:, 1]],
    }
    content["t1"][3] = ""
    files = source(write_csv(tmp_path / "d.csv", content), {"tags": {"columns": ["t1", "t2"]}})
    assert files.found.tasks["tags"].kind == "multilabel" and files.class_names("tags") == (
        "t1",
        "t2",
    )
    target = files.load()["target/tags"]
    assert np.isnan(target[3, 0])
    target[3, 0] = truth[3, 0]
    np.testing.assert_array_equal(target, truth)
