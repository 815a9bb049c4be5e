"""The best model of a training, and trainings that end early."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from raymtl.config import Experiment
from raymtl.evaluation.kept import BEST_STEP, has_ended, kept_notes, kept_row
from raymtl.storage import formats
from raymtl.training.best import BestTracker
from raymtl.types import UserError
from tests.conftest import experiment
from tests.training import runs
from tests.training.runs import Stopped

EVERY = 2


def scored_run(chosen: Experiment, arrays: Any, folder: Path, stop_at: int | None = None) -> None:
    """Trains, and copies the model of every checkpoint to `STEP.safetensors`."""

    def scored(step: int) -> None:
        saved = folder / "checkpoints" / f"step_{step:08d}" / "model.safetensors"
        formats.save_params(folder / f"{step}.safetensors", formats.load_params(saved))

    runs.run(chosen, arrays, folder, stop_at=stop_at, scored=scored)


def restless(**values: Any) -> Experiment:
    """A training whose score goes up and down, so that its best model is not the last one."""
    plan = {"train.steps": 20, "train.eval_every": EVERY, "train.lr": 0.1, "train.graph": "none"}
    short = experiment(encoder__hidden=[6], evaluate__val_episodes=2, learner__inner_steps=1)
    return short.override(plan | {"train.metric": "val.loss"} | values)


def history(folder: Path) -> list[dict[str, Any]]:
    return formats.read_rows(folder / "history.parquet")


def same(one: Path, other: Path) -> bool:
    first, second = load_file(one), load_file(other)
    assert first.keys() == second.keys()
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def whole(arrays: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All steps, the last model kept, and the model of every score."""
    folder = tmp_path_factory.mktemp("whole")
    scored_run(restless(), arrays, folder)
    return folder


def best_of(rows: list[dict[str, Any]]) -> int:
    """The step with the lowest loss, the first of equals."""
    scores: dict[int, float] = {
        row["step"]: row["val.loss"] for row in rows if row["val.loss"] is not None
    }
    return min(scores, key=lambda step: (scores[step], step))


def test_the_best_model_is_kept(whole: Path, arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    chosen = restless(**{"train.keep": "best"})
    scored_run(chosen, arrays, tmp_path)
    best = best_of(history(whole))
    assert 0 < best < 20  # or this shows nothing
    assert same(tmp_path / "model.safetensors", whole / f"{best}.safetensors")
    assert not same(tmp_path / "model.safetensors", whole / "20.safetensors")
    rows = history(tmp_path)
    assert rows[-1][BEST_STEP] == best and kept_row(chosen.train, rows)["step"] == best
    (note,) = kept_notes(chosen.train, rows)
    assert f"the model of step {best} is kept" in note.text and note.key == "train.keep"


@pytest.mark.parametrize("keep", ["best", "last"])
def test_training_ends_when_patience_does(
    whole: Path, arrays: dict[str, np.ndarray], tmp_path: Path, keep: str
) -> None:
    scores = [row["val.loss"] for row in history(whole) if row["val.loss"] is not None]
    waits = [n - int(np.argmin(scores[: n + 1])) for n in range(len(scores))]
    patience = max(waits[:-1])  # reached before the last score
    end = EVERY * (1 + waits.index(patience))
    assert end < 20
    chosen = restless(**{"train.keep": keep, "train.patience": patience})
    scored_run(chosen, arrays, tmp_path)
    rows = history(tmp_path)
    assert len(rows) == end and has_ended(chosen.train, rows)
    assert not has_ended(chosen.train, rows[:-1])
    kept = end
    if keep == "best":
        kept = end - patience * EVERY
    assert same(tmp_path / "model.safetensors", whole / f"{kept}.safetensors")
    assert any(note.key == "train.patience" for note in kept_notes(chosen.train, rows))
    before = (tmp_path / "model.safetensors").stat().st_mtime_ns
    scored_run(chosen, arrays, tmp_path)  # as after --resume: nothing is left to do
    assert len(history(tmp_path)) == end
    assert (tmp_path / "model.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize("stop_at", range(EVERY, 20, 3 * EVERY))
def test_a_resumed_training_keeps_the_same_model(
    whole: Path, arrays: dict[str, np.ndarray], tmp_path: Path, stop_at: int
) -> None:
    """Wherever it was interrupted: before, at, and after its best step."""
    chosen = restless(**{"train.keep": "best"})
    with pytest.raises(Stopped):
        scored_run(chosen, arrays, tmp_path, stop_at=stop_at)
    scored_run(chosen, arrays, tmp_path)
    assert same(tmp_path / "model.safetensors", whole / f"{best_of(history(whole))}.safetensors")
    assert history(tmp_path)[-1][BEST_STEP] == best_of(history(whole))


def test_ties_and_gaps_leave_the_earlier_best() -> None:
    """Against the definition, on drawn scores with equal ones and missing ones."""
    drawn = random.Random(0)
    for metric, sign in (("val.score", 1), ("val.loss", -1)):
        tracker = BestTracker(restless(**{"train.keep": "best", "train.metric": metric}))
        seen: dict[int, float] = {}
        for step in range(1, 200):
            score = drawn.choice([None, 0.1, 0.2, 0.3 + step // 50])
            if score is not None:
                seen[step] = score
            told = tracker.update(step, {metric: score}, {"w": torch.tensor(float(step))})
            if not seen:
                continue
            best = max(seen, key=lambda step: (sign * seen[step], -step))
            assert told[BEST_STEP] == best and tracker.best is not None
            assert tracker.best.params["w"] == best


def test_stages_track_the_last_one(arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    stage = {"steps": 8, "set": {"train.lr": 0.01}}
    chosen = restless(**{"train.keep": "best", "stages": [stage]})
    scored_run(chosen, arrays, tmp_path)
    rows = history(tmp_path)
    assert all(row[BEST_STEP] is None for row in rows if row["step"] <= 8)
    best = best_of([row for row in rows if row["step"] > 8])
    assert rows[-1][BEST_STEP] == best
    assert same(tmp_path / "model.safetensors", tmp_path / f"{best}.safetensors")


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"train.metric": "val.scor"}, "train.metric: expected one of val.score, val.loss"),
        ({"train.metric": "num_parameters"}, "train.metric: expected one of val.score, val.loss"),
        (
            {"train.patience": 2, "mode": {"name": "online"}, "weighting.name": "static"},
            "train.patience: expected none with mode.name: online",
        ),
    ],
)
def test_bad_selections_are_refused(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        restless(**{"train.metric": "val.score"} | values)
