"""`raymtl data inspect`: what it prints is what is in the files, and the batch is drawn."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from raymtl.cli import main
from raymtl.data import SPLITS
from tests.data.own import PICTURE_TASKS, columns, write_parquet, write_pictures


def inspected(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *args: str
) -> str:
    monkeypatch.setattr(sys, "argv", ["raymtl", "data", "inspect", *args])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    return capsys.readouterr().out


def config(tmp_path: Path, path: Any, tasks: Any, **more: Any) -> str:
    file = tmp_path / "c.yaml"
    data = {"name": "files", "path": str(path), "tasks": tasks, **more}
    file.write_text(
        json.dumps(
            {
                "name": "mine",
                "output": str(tmp_path / "out"),
                "data": data,
                "encoder": {"name": "mlp"},
            }
        )
    )
    return str(file)


def test_inspection_tells_schema_counts_and_balance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content = columns(rows=300, tasks=3)
    content["blood.pressure"][5] = None
    tasks = {
        "level": {"column": "task 0.x"},
        "answer": {"column": "task 1.x"},
        "grade": {"column": "task 2.x"},
    }
    path = config(
        tmp_path, write_parquet(tmp_path / "t.parquet", content), tasks, missing_inputs="mean"
    )
    told = json.loads(inspected(monkeypatch, capsys, path, "--json"))
    found = {row["column"]: row for row in told["columns"]}
    assert found["visit"]["type"].startswith("date32") and found["Stadt"]["role"] == "category"
    assert found["blood.pressure"]["missing"] == pytest.approx(1 / 300)
    assert told["left_out"]["constant"] == "always '1'"
    assert sum(told["splits"].values()) == told["rows"] == 300
    for task, column in (("level", "task 0.x"), ("answer", "task 1.x"), ("grade", "task 2.x")):
        known = [value for value in content[column] if value is not None]
        splits = told["tasks"][task]["splits"]
        assert sum(splits[split]["labelled"] for split in SPLITS) == len(known)
        if task != "level":
            for label in set(known):
                assert sum(splits[s]["balance"][str(label)] for s in SPLITS) == known.count(label)
    assert told["tasks"]["level"]["splits"]["train"]["balance"]["max"] <= np.float32(
        max(v for v in content["task 0.x"] if v is not None)
    )
    with Image.open(told["picture"]) as picture:
        assert picture.width > 300 and len(set(picture.getdata())) > 2
    text = inspected(monkeypatch, capsys, path)
    for part in (
        "parquet, 300 rows",
        "blood.pressure",
        "left out: id",
        "answer",
        "(inferred)",
        "Split by",
        "mine-batch.png",
    ):
        assert part in text


def test_pictures_are_drawn_with_their_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was left out is said."""
    root = write_pictures(tmp_path / "p")
    (root / "broken.png").write_bytes(b"no picture")
    path = config(tmp_path, root, dict(PICTURE_TASKS), size=8, max_corrupt=0.1)
    told = json.loads(
        inspected(monkeypatch, capsys, path, "--json", "--picture", str(tmp_path / "batch.png"))
    )
    (note,) = [note for note in told["notes"] if note["key"] == "data.max_corrupt"]
    assert (
        note["text"]
        == "1 of 61 pictures cannot be read: broken.png (no picture); they are left out"
    )
    assert (note["place"], note["key"]) == ("pictures", "data.max_corrupt")
    assert told["input_shape"] == [3, 8, 8]
    assert set(told["tasks"]["tags"]["splits"]["train"]["balance"]) == {"small", "tall", "wide"}
    with Image.open(tmp_path / "batch.png") as picture:
        assert picture.width > 300


def test_any_source_can_be_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "d.yaml"
    file.write_text(f"name: digits\noutput: {tmp_path}\nlearner: {{name: maml}}\n")
    assert "digits-batch.png" in inspected(monkeypatch, capsys, str(file))
    file.write_text(
        f"name: sine\noutput: {tmp_path}\ndata: {{name: sinusoid}}\nencoder: {{name: mlp}}\n"
    )
    told = json.loads(inspected(monkeypatch, capsys, str(file), "--json"))
    assert told["episode"]["query"] == {"y": 10}


def test_a_mistake_is_one_sentence_and_status_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = config(tmp_path, tmp_path / "nowhere.csv", {"y": {}})
    monkeypatch.setattr(sys, "argv", ["raymtl", "data", "inspect", path])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "data.path: expected a file, a folder or a URL" in capsys.readouterr().err


@pytest.mark.parametrize("picture", ["batch.docx", "folder", "data.csv/batch.png"])
def test_an_unwritable_picture_is_one_sentence(
    picture: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "data.csv").write_text(
        "x,y\n" + "".join(f"{i * 7 % 11 + 0.5},{i % 2}\n" for i in range(80))
    )
    path = config(tmp_path, tmp_path / "data.csv", {"y": {}})
    monkeypatch.setattr(
        sys, "argv", ["raymtl", "data", "inspect", path, "--picture", str(tmp_path / picture)]
    )
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert (
        f"{tmp_path / picture}: expected where a picture can be written" in capsys.readouterr().err
    )
