"""What a tracker gets of a run folder; nothing twice, and nothing that stops a training."""

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

import raymtl
from raymtl.run_folder import environment
from raymtl.storage import formats
from raymtl.storage.notes import Note
from raymtl.tracking import live
from raymtl.tracking.live import tracked
from raymtl.tracking.tracker import About, Tracker
from raymtl.types import UserError
from tests.conftest import experiment


class Recorder:
    """A tracker in memory."""

    name = "recorder"
    place = "here"

    def __init__(self) -> None:
        self.begun: dict[str, tuple[About, str | None]] = {}
        self.rows: dict[str, list[Mapping[str, float]]] = {}
        self.ended: dict[str, tuple[str, Mapping[str, float]]] = {}
        self.fails_after: int | None = None
        self.knows_steps = True

    def begin(self, about: About, parent: str | None) -> str:
        self.begun[about.name] = (about, parent)
        self.rows.setdefault(about.name, [])
        return about.name

    def last_step(self, run_id: str) -> int | None:
        if not self.knows_steps:
            return None
        return int(max((row["step"] for row in self.rows[run_id]), default=0))

    def log(self, run_id: str, rows: Sequence[Mapping[str, float]]) -> None:
        self.rows[run_id] += rows
        if self.fails_after is not None and len(self.rows[run_id]) >= self.fails_after:
            raise ConnectionError("away")

    def end(self, run_id: str, state: str, scores: Mapping[str, float]) -> None:
        self.ended[run_id] = (state, scores)

    def close(self) -> None:
        pass

    def steps(self, name: str) -> list[float]:
        return [row["step"] for row in self.rows[name]]


def add_training(folder: Path, steps: int, *, scored: bool = False) -> None:
    """A model folder after so many steps."""
    folder.mkdir(parents=True, exist_ok=True)
    experiment(train__lr=0.01).save(folder / "config.yaml")
    rows: list[dict[str, Any]] = [
        {"step": step, "loss.left": 1 / step, "val.score": None if step % 2 else 0.5, "stage": "a"}
        for step in range(1, steps + 1)
    ]
    rows[0]["loss.left"] = float("nan")
    formats.write_rows(folder / "history.parquet", rows)
    if scored:
        scores = {"left": {"accuracy": {"after": {"mean": 0.9}}, "f1": {"after": {"mean": None}}}}
        formats.write_json(folder / "metrics.json", {"split": "test", "tasks": scores})


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A search that has begun: one trial is over, and one is at work."""
    folder = tmp_path / "digits"
    folder.mkdir()
    formats.write_json(folder / "environment.json", environment(experiment(), "tune"))
    experiment().save(folder / "config.yaml")
    add_training(folder / "trials" / "0000", 4)
    add_training(folder / "trials" / "0001", 2)
    rows = [{"number": 0, "state": "pruned"}, {"number": 1, "state": "running"}]
    formats.write_rows(folder / "trials.parquet", rows)
    return folder


def finish(run: Path) -> None:
    add_training(run / "trials" / "0001", 4)
    rows = [{"number": 0, "state": "pruned"}, {"number": 1, "state": "complete"}]
    formats.write_rows(run / "trials.parquet", rows)
    add_training(run / "best", 6, scored=True)
    add_training(run / "baselines" / "joint", 6, scored=True)
    formats.write_json(run / "summary.json", {})


def test_each_training_is_a_run_below_the_whole(run: Path) -> None:
    sink = Recorder()
    assert Tracker(run, sink).update() == 6
    about, parent = sink.begun["trials/0000"]
    assert (parent, about.values["train.lr"]) == ("digits", 0.01)
    assert sink.begun["digits"][1] is None
    assert sink.rows["trials/0001"] == [
        {"step": 1.0},
        {"step": 2.0, "loss.left": 0.5, "val.score": 0.5},
    ]
    assert sink.ended == {"trials/0000": ("pruned", {})}
    finish(run)
    assert Tracker(run, sink).update() == 2 + 6 + 6
    assert sink.steps("trials/0001") == [1, 2, 3, 4]
    assert sink.ended["trials/0001"] == ("complete", {})
    for name in ("best", "baselines/joint"):
        assert sink.ended[name] == ("complete", {"test.left.accuracy": 0.9})
    assert sink.ended["digits"] == ("complete", {})
    keys = [about.key for about, _ in sink.begun.values()]
    assert len(set(keys)) == len(keys)


def test_nothing_is_sent_twice(run: Path) -> None:
    sink = Recorder()
    for _ in range(3):
        Tracker(run, sink).update()
    finish(run)
    for _ in range(3):
        Tracker(run, sink).update()
    assert sink.steps("best") == list(range(1, 7))
    # A resumed training begins again at a checkpoint, and makes the same steps once more.
    add_training(run / "best", 4)
    assert Tracker(run, sink).update() == 0
    assert sink.steps("best") == list(range(1, 7))


def test_another_place_gets_everything(run: Path) -> None:
    first, second = Recorder(), Recorder()
    second.place = "there"
    Tracker(run, first).update()
    assert Tracker(run, second).update() == 6
    assert Tracker(run, first).update() == 0


def test_what_arrived_before_a_failure_is_not_sent_again(run: Path) -> None:
    """The tracker has the rows, and the connection broke before it said so."""
    sink = Recorder()
    sink.fails_after = 1
    with pytest.raises(ConnectionError):
        Tracker(run, sink).update()
    sink.fails_after = None
    Tracker(run, sink).update()
    assert sink.steps("trials/0000") == [1, 2, 3, 4]
    assert sink.steps("trials/0001") == [1, 2]


def test_a_run_goes_on_where_its_tracker_is_away(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = Recorder()
    sink.fails_after = 1
    notes: list[Note] = []
    told = threading.Event()

    def announce(new: Sequence[Note]) -> None:
        notes.extend(new)
        told.set()

    monkeypatch.setattr(live, "sink", lambda name: sink)
    monkeypatch.setattr(live, "LOOK_S", 0.01)
    with tracked(run, ["recorder"], announce):
        assert told.wait(10)
        finish(run)
    assert [note.key for note in notes] == ["track", "track"]
    assert "ConnectionError: away" in notes[0].text
    assert "`raymtl export" in notes[1].text and "--to recorder" in notes[1].text
    sink.fails_after = None
    Tracker(run, sink).update()
    assert sink.steps("best") == list(range(1, 7))


def test_a_live_run_is_followed_to_its_end(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = Recorder()
    monkeypatch.setattr(live, "sink", lambda name: sink)
    with tracked(run, ["recorder"], lambda notes: pytest.fail(str(notes))):
        finish(run)
    assert sink.ended["digits"] == ("complete", {})


def test_mistakes_are_one_sentence(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="to: expected mlflow or wandb, got 'excel'"):
        raymtl.track(run, "excel")
    with pytest.raises(UserError, match="no-run"):
        raymtl.track(tmp_path / "no-run", "mlflow")
