"""Runs of version 0.1.0, as it left them (tests/earlier_run), are read by this version."""

import json
import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from raymtl import config
from raymtl.adaptation.adapt import adapt_run
from raymtl.adaptation.request import AdaptationRequest
from raymtl.data import SPLITS, Arrays, Sinusoid, Split
from raymtl.data.base import Bucket
from raymtl.data.draws import Draws
from raymtl.evaluation.evaluate import evaluate, load_model
from raymtl.storage import formats
from raymtl.training.context import TrainContext
from raymtl.training.loop import local_batches, train_loop
from raymtl.types import Batch, Episode

EARLIER = Path(__file__).parent.parent / "earlier_run"


class EarlierDraws(Draws):
    """What the episodes of version 0.1.0 were seeded with."""

    seeds: list[tuple[int, int, int, int]]


@pytest.fixture
def earlier_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Curves as version 0.1.0 drew them, each by a generator of NumPy."""

    def generators(seed: int, split: Split, step: int, indices: Sequence[int]) -> Draws:
        draws = EarlierDraws.of_episodes([seed], indices)
        draws.seeds = [(seed, SPLITS.index(split), step, index) for index in indices]
        return draws

    def draw_episodes(
        source: Sinusoid, arrays: Arrays, split: Split, draws: EarlierDraws
    ) -> Iterator[Bucket]:
        for seeds in draws.seeds:
            rng = np.random.default_rng(seeds)
            rng.integers(1)
            amplitude, phase = rng.uniform(0.1, 5), rng.uniform(0, math.pi)
            x = rng.uniform(-5, 5, size=(1, 10))
            inputs = torch.from_numpy(x).float()[..., None]
            y = torch.from_numpy(amplitude * np.sin(x - phase)).float()
            support, query = (
                Batch(inputs[:, part], {"y": y[:, part]}, {}) for part in (slice(5), slice(5, None))
            )
            yield Bucket(Episode(support, query), np.array(seeds[-1:]), lambda: ["sinusoid"])

    monkeypatch.setattr("raymtl.data.episodes.generators", generators)
    monkeypatch.setattr(Sinusoid, "draw_episodes", draw_episodes)


def resumed(tmp_path: Path) -> Path:
    """The interrupted run, trained to its end by this version."""
    run = shutil.copytree(EARLIER / "interrupted", tmp_path / "run")
    experiment = config.load(run / "config.yaml")
    arrays = experiment.data.load()
    train_loop(
        experiment,
        arrays,
        local_batches(experiment, arrays),
        TrainContext(lambda metrics: None, lambda row: None),
        run / "best",
    )
    assert json.loads((run / "best" / "resumes.jsonl").read_text())["from"] == "step_00000004"
    return run / "best"


def test_an_earlier_checkpoint_is_resumed(earlier_episodes: None, tmp_path: Path) -> None:
    """On the same episodes the rest of the training is what it was."""
    found = load_file(resumed(tmp_path) / "model.safetensors")
    expected = load_file(EARLIER / "finished" / "best" / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)


def test_an_earlier_training_says_its_episodes_differ(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It goes on from its parameters; a training of this version says nothing."""
    model = resumed(tmp_path)
    assert "From step 5 on its episodes are drawn anew" in caplog.text
    found = load_file(model / "model.safetensors")
    begun = load_file(EARLIER / "interrupted/best/checkpoints/step_00000004/model.safetensors")
    moved = [float((found[name] - value).abs().max()) for name, value in begun.items()]
    assert 0 < max(moved) < 5 * 0.003  # four steps of Adam
    caplog.clear()
    shutil.rmtree(model / "checkpoints" / "step_00000004", ignore_errors=True)
    experiment = config.load(model.parent / "config.yaml")
    context = TrainContext(lambda metrics: None, lambda row: None)
    train_loop(experiment, {}, local_batches(experiment, {}), context, model)
    assert "drawn anew" not in caplog.text


def test_an_earlier_model_has_its_earlier_scores(earlier_episodes: None) -> None:
    """On the same test episodes, to every digit that was written."""
    folder = EARLIER / "finished" / "best"
    experiment, algorithm, params = load_model(folder)
    metrics = evaluate(experiment, algorithm, params, experiment.data.load()).metrics
    earlier = json.loads((folder / "metrics.json").read_text())
    assert metrics["split"] == earlier["split"] == "test"
    for metric, scores in earlier["tasks"]["y"].items():
        for when in ("before", "after"):
            again = metrics["tasks"]["y"][metric][when]
            for number in ("mean", "low", "high"):
                assert again[number] == pytest.approx(scores[when][number], rel=1e-4), metric


def test_an_earlier_model_adapts(tmp_path: Path) -> None:
    run = shutil.copytree(EARLIER / "finished", tmp_path / "run")
    adapt_run(AdaptationRequest(run, episode=1, name="again"))
    predicted = formats.read_rows(run / "adapted" / "again" / "predictions.parquet")
    assert len(predicted) == 5 and all(math.isfinite(row["y.after"]) for row in predicted)
