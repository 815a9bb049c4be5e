"""Files that have moved: a run takes them in their new place, and keeps what it found in the old one."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from raymtl.adaptation.adapt import adapt_run
from raymtl.adaptation.request import AdaptationRequest
from raymtl.config import load
from raymtl.data import Files
from raymtl.evaluation.evaluate import load_model
from raymtl.types import UserError
from tests.adaptation.test_new_rows import (
    TASKS,
    flats,
    predictions,
    source_of,
    support_file,
    trained,
)
from tests.cli.test_cli import answer, mistake
from tests.data.own import write_csv
from tests.narrowing import checked


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A run on `flats.csv`, which is then called `moved.csv`."""
    write_csv(tmp_path / "flats.csv", flats())
    trained(
        tmp_path / "run", {"path": str(tmp_path / "flats.csv"), "tasks": TASKS, "group": "landlord"}
    )
    return tmp_path


def shifted(path: Path) -> Path:
    """Flats of other sizes, so that another mean and spread would be found in them."""
    content = flats(60, seed=4)
    content["size (m2)"] = [3 * size + 100 for size in content["size (m2)"]]
    return write_csv(path, content)


def test_moved_files_are_scored(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = json.loads(answer(monkeypatch, capsys, "evaluate", str(home / "run"), "--json"))
    (home / "flats.csv").rename(home / "moved.csv")
    moved = ("--data", str(home / "moved.csv"))
    assert (
        json.loads(answer(monkeypatch, capsys, "evaluate", str(home / "run"), "--json", *moved))
        == before
    )
    assert "are those found in" in answer(
        monkeypatch, capsys, "evaluate", str(home / "run"), *moved
    )
    told = json.loads(answer(monkeypatch, capsys, "adapt", str(home / "run"), "--json", *moved))
    assert told["predicted_examples"] == 4
    message = mistake(
        monkeypatch, capsys, "evaluate", str(home / "run"), "--data", str(home / "gone.csv")
    )
    assert "gone.csv, where there is none" in message


def test_editing_a_runs_path_keeps_findings(home: Path) -> None:
    support = support_file(home / "new.csv")
    before = predictions(adapt_run(AdaptationRequest(home / "run", support), 3))
    source = source_of(home / "run")
    config = home / "run" / "best" / "config.yaml"
    tree = yaml.safe_load(config.read_text())
    tree["data"]["path"] = str(shifted(home / "other.csv"))
    config.write_text(yaml.safe_dump(tree))
    edited = source_of(home / "run")
    assert edited.path != source.path and edited.fitted == source.fitted
    assert (
        predictions(adapt_run(AdaptationRequest(home / "run", support, name="again"), 3)) == before
    )
    (note,) = (note for note in edited.notes(edited.load()) if note.key == "data.fitted")
    assert "other.csv" in note.place and "are those found in" in note.text
    tree["data"]["fitted"] = None
    config.write_text(yaml.safe_dump(tree))
    assert (
        checked(load(config).data, Files).found.columns[0].mean > 2 * source.found.columns[0].mean
    )


def test_other_settings_still_find_anew(home: Path) -> None:
    source = source_of(home / "run")
    others: list[dict[str, Any]] = [{"exclude": ("city",)}, {"tasks": {"rent": {}, "state": {}}}]
    for changes in others:
        other = Files.model_validate({**source.model_dump(), **changes}).resolve()
        assert other.fitted != source.fitted


def test_moved_files_must_have_the_columns(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for gone, says in (
        ("city", "data.path: {}: expected the column 'city'"),
        ("rent", "data.tasks.rent: {}: expected"),
    ):
        content = {name: values for name, values in flats().items() if name != gone}
        path = write_csv(home / f"without-{gone}.csv", content)
        message = mistake(monkeypatch, capsys, "evaluate", str(home / "run"), "--data", str(path))
        assert says.format(path) in message and message.count("\n") == 1


def test_files_move_by_their_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of a task and those of a split."""
    content = flats()
    content["id"] = [f"f{i}" for i in range(120)]
    write_csv(tmp_path / "flats.csv", {name: content[name] for name in ("id", "size (m2)", "city")})
    write_csv(tmp_path / "rents.csv", {name: content[name] for name in ("id", "rent")})
    tasks = {"rent": {"path": str(tmp_path / "rents.csv")}}
    run = trained(
        tmp_path / "run", {"path": str(tmp_path / "flats.csv"), "tasks": tasks, "key": "id"}
    )
    before = json.loads(answer(monkeypatch, capsys, "evaluate", str(run), "--json"))
    shutil.move(tmp_path / "rents.csv", tmp_path / "new rents.csv")
    moved = f"tasks.rent.path={tmp_path / 'new rents.csv'}"
    assert (
        json.loads(answer(monkeypatch, capsys, "evaluate", str(run), "--json", "--data", moved))
        == before
    )
    message = mistake(monkeypatch, capsys, "evaluate", str(run), "--data", "tasks.size.path=x.csv")
    assert (
        "--data tasks.size.path: expected one of path, path.train, path.val, path.test, tasks.rent.path"
        in message
    )
    source = source_of(run).moved({"path.test": str(tmp_path / "flats.csv")})
    assert checked(source, Files).path == {"test": str(tmp_path / "flats.csv")}


def test_data_without_files_do_not_move(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained(tmp_path / "run", {"name": "sinusoid", "shots": 4, "queries": 4})
    with pytest.raises(
        UserError, match="--data: expected a run on files or on a folder, got one on sinusoid"
    ):
        load_model(run / "best")[0].data.moved({"path": "x"})
