"""Runs of version 0.1.0, as it left them (tests/earlier_run), are read by this version."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from raymtl import config
from raymtl.adaptation.adapt import adapt_run
from raymtl.adaptation.request import AdaptationRequest
from raymtl.evaluation.evaluate import evaluate, load_model
from raymtl.storage import formats
from raymtl.training.context import TrainContext
from raymtl.training.loop import local_batches, train_loop

EARLIER = Path(__file__).parent.parent / "earlier_run"


def test_an_earlier_checkpoint_is_resumed(tmp_path: Path) -> None:
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
    resumed = load_file(run / "best" / "model.safetensors")
    expected = load_file(EARLIER / "finished" / "best" / "model.safetensors")
    assert resumed.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(resumed[name], value, rtol=1e-5, atol=1e-6)


def test_an_earlier_model_has_its_earlier_scores() -> None:
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
