"""The record of steps: nothing is lost or repeated, whenever it is written."""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from raymtl.reporting import ray_metrics, tensorboard
from raymtl.reporting.tensorboard import Events
from raymtl.storage import formats
from raymtl.storage.fence import claim
from raymtl.training.context import TrainContext
from raymtl.training.recorder import Recorder

CONTEXT = TrainContext(lambda scores: None, lambda row: None)


def row(step: int, **scores: float) -> dict[str, Any]:
    loss = None if step % 3 == 0 else 0.5 * step
    return {"step": step, "seconds": 0.25 * step, "loss.left": loss, **scores}


def clock(now: list[float]) -> SimpleNamespace:
    """A module `time` that says what the test says."""
    return SimpleNamespace(monotonic=lambda: now[0], time=lambda: now[0])


def shown(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Tag -> the steps and values that TensorBoard shows."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    tags = events.Tags()["scalars"]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


def test_history_does_not_depend_on_flushes(tmp_path: Path) -> None:
    rows = [
        row(step) if step % 4 else row(step, **{"val.score": 0.1 * step}) for step in range(1, 13)
    ]
    written = []
    for name, flushed in (("once", (12,)), ("often", (1, 3, 8, 9, 12))):
        (tmp_path / name).mkdir()
        recorder = Recorder(claim(tmp_path / name), 0, (), CONTEXT)
        for each in rows:
            recorder.add(each)
            if each["step"] in flushed:
                recorder.flush()
        assert recorder.unwritten == []
        assert recorder.seconds == sum(each["seconds"] for each in rows)
        written.append(formats.read_rows(tmp_path / name / "history.parquet"))
    assert written[0] == written[1] == [{"val.score": None} | each for each in rows]


def test_a_resumed_history_is_cut_and_continued(tmp_path: Path) -> None:
    first = Recorder(claim(tmp_path), 0, (), CONTEXT)
    for step in range(1, 7):
        first.add(row(step))
    first.flush()
    # The checkpoint stands at step 5, and the file has a step more.
    second = Recorder(claim(tmp_path), 5, [row(4), row(5)], CONTEXT)
    assert second.seconds == 0.25 * (1 + 2 + 3 + 4 + 5) and second.unwritten == []
    second.add(row(6, **{"val.score": 1.0}))
    assert [each["step"] for each in second.unwritten] == [6]
    second.flush()
    again = formats.read_rows(tmp_path / "history.parquet")
    assert [each["step"] for each in again] == [1, 2, 3, 4, 5, 6]
    assert [each["val.score"] for each in again] == [None] * 5 + [1.0]


def test_steps_are_shown_in_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first at once, later ones together after `FLUSH_S`, and all of them after `flush`."""
    now = [100.0]
    monkeypatch.setattr(tensorboard, "time", clock(now))
    events = Events(tmp_path, 0)
    events.add(row(1))
    assert shown(tmp_path)["seconds"] == [(1, 0.25)]
    events.add(row(2))
    events.add(row(3))
    assert shown(tmp_path)["seconds"] == [(1, 0.25)]
    now[0] += tensorboard.FLUSH_S
    events.add(row(4))
    assert shown(tmp_path)["seconds"] == [(n, 0.25 * n) for n in (1, 2, 3, 4)]
    events.add(row(5))
    events.flush()
    assert shown(tmp_path)["loss/left"] == [(n, 0.5 * n) for n in (1, 2, 4, 5)]
    later = Events(tmp_path, 3)
    later.add(row(4, **{"val.score": 2.0}))
    assert shown(tmp_path)["seconds"] == [(n, 0.25 * n) for n in (1, 2, 3, 4)]


def test_metrics_are_set_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """And with every score."""
    now, steps = [100.0], []

    class Gauge:
        def __init__(self, name: str, **options: Any) -> None:
            self.name = name

        def set(self, value: float, tags: Mapping[str, str]) -> None:
            if self.name == "raymtl_step":
                steps.append(value)

    monkeypatch.setattr(ray_metrics, "Gauge", Gauge)
    monkeypatch.setattr(ray_metrics, "time", clock(now))
    observe = ray_metrics.observer("run", ("left",))
    numbers = dict.fromkeys((*ray_metrics.STEP_METRICS, "loss.left", "weight.left"), 1.0)
    observe(numbers | {"step": 1})
    observe(numbers | {"step": 2})
    observe(numbers | {"step": 3, "val.score": 1.0})
    observe(numbers | {"step": 4})
    now[0] += ray_metrics.SET_S
    observe(numbers | {"step": 5})
    assert steps == [1, 3, 5]
