"""Pictures of a stream that cannot be read: training goes on without them, and a note names them."""

from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from raymtl.config import Experiment
from raymtl.data.left_out import LEFT_OUT
from raymtl.data.sources.combined import Several
from raymtl.data.tables import shuffle_buffer
from raymtl.storage.fence import claim
from raymtl.training import left_out
from raymtl.training.context import TrainContext
from raymtl.training.left_out import LeftOutRecord, note_of
from raymtl.training.loop import local_batches, train_loop
from tests.conftest import experiment
from tests.data.own import write_pictures


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Pictures that are streamed, none of which is held out."""
    monkeypatch.setattr("raymtl.data.tables.folders.PICTURES_A_BLOCK", 10)
    shuffle_buffer._READERS.clear()
    LEFT_OUT.taken()
    root = write_pictures(tmp_path / "pictures")
    data = {"name": "files", "path": str(root), "tasks": {"colour": {}}, "channels": 1}
    return data | {
        "size": 8, "in_memory_mb": 0.0035, "shots": 2, "queries": 4, "hold_steps": 2,
        "max_corrupt": 0.5,
    }  # fmt: skip


def streamed(data: Any, **values: Any) -> Experiment:
    chosen = experiment(
        data=data,
        encoder__name="mlp",
        encoder__hidden=[4],
        learner__inner_steps=0,
        train__meta_batch=2,
        train__task_axis="loop",
        **values,
    ).resolve()
    assert chosen.data.is_streamed
    return chosen


def train(chosen: Experiment, arrays: Any, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    context = TrainContext(lambda scores: None, lambda row: None)
    train_loop(chosen, arrays, local_batches(chosen, arrays), context, folder)


def test_pictures_left_out_of_a_stream_are_named(tmp_path: Path, data: dict[str, Any]) -> None:
    """Those that broke after the data were loaded; also when they are whole again at the end."""
    half = streamed(data, train__steps=40, train__eval_every=20)
    arrays = half.data.load()
    folder = tmp_path / "model"
    assert note_of([folder], half.data) is None
    broken = {path: path.read_bytes() for path in sorted(Path(data["path"]).rglob("*.png"))[:7]}
    for path in broken:
        path.write_bytes(b"no picture")
    train(half, arrays, folder)
    for path, content in broken.items():
        path.write_bytes(content)
    shuffle_buffer._READERS.clear()
    train(half.override({"train.steps": 60}), arrays, folder)
    note = note_of([folder], half.data)
    names = sorted(f"{path.relative_to(data['path'])} (no picture)" for path in broken)
    assert str(note) == (
        f"streamed pictures: 7 of those that were drawn from cannot be read: {'; '.join(names[:5])} "
        "and 2 more; they are left out (data.max_corrupt)"
    )
    pytest.importorskip("ray")
    from raymtl.pipeline import pipeline
    from raymtl.pipeline.monitor import watched

    assert pipeline._notes_on_data(half, arrays, {"model": folder})[-1] == note
    view = mock.Mock()
    with watched({folder: half}, view):
        pass
    assert [call.args for call in view.say.call_args_list] == [(f"model: {note}",)]


def test_the_note_names_the_part_that_is_streamed(tmp_path: Path, data: dict[str, Any]) -> None:
    several = Several.model_validate({"parts": {"own": data}}).resolve()
    record = LeftOutRecord(claim(tmp_path), 0)
    LEFT_OUT.add(["a.png (no picture)"])
    record.look()
    assert str(note_of([tmp_path], several)) == (
        "own: streamed pictures: 1 of those that were drawn from cannot be read: a.png (no "
        "picture); they are left out (data.parts.own.max_corrupt)"
    )


def test_workers_write_files_of_their_own(
    tmp_path: Path, data: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The note counts a picture once, and says where a worker noted no more."""
    monkeypatch.setattr(left_out, "MOST", 3)
    attempt = claim(tmp_path)
    for rank, names in enumerate((["a", "b"], ["b", "c", "d", "e"])):
        record = LeftOutRecord(attempt, rank)
        LEFT_OUT.add(names)
        record.look()
    assert "at least 4 of those" in str(note_of([tmp_path], streamed(data).data))
