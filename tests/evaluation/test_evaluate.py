"""Scores: their intervals, what leaks, and the files."""

from pathlib import Path

import pytest
import torch
from torch.utils._pytree import tree_map

from raymtl.data.base import Arrays
from raymtl.evaluation.evaluate import evaluate, evaluate_folder, load_model
from raymtl.evaluation.scores import validation_scores
from raymtl.step.execution import ExecutionConfig
from raymtl.step.workers import Workers
from raymtl.storage import formats
from raymtl.training.context import TrainContext
from raymtl.training.loop import local_batches, train_loop
from raymtl.types import Episode, UserError
from tests.conftest import LEARNERS, axes, episodes_of, experiment


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, arrays: Arrays) -> Path:
    folder = tmp_path_factory.mktemp("model")
    chosen = experiment(train__steps=80, train__eval_every=80, encoder__hidden=[64], learner__inner_lr=0.03,
                        data__shots=2, data__queries=2, evaluate__test_episodes=40)  # fmt: skip
    context = TrainContext(lambda metrics: None, lambda row: None)
    train_loop(chosen, arrays, local_batches(chosen, arrays), context, folder)
    return folder


def test_the_folder_scores_as_the_model(trained: Path, arrays: Arrays) -> None:
    """And adapting helps."""
    chosen, algorithm, params = load_model(trained)
    evaluate_folder(trained, arrays, chosen.data)
    written = formats.read_json(trained / "metrics.json")
    again, examples, _ = evaluate(chosen, algorithm, params, arrays, split="test")
    assert {key: written[key] for key in again} == again
    assert written["split"] == "test"
    other, _, _ = evaluate(chosen, algorithm, params, arrays, split="val")
    assert other["score"] != written["score"]
    assert written["steps"] == 80
    assert written["transductive"] is False
    gain = written["score"]["gain"]
    assert gain["mean"] > gain["ci95"] > 0
    assert len(examples) == len(formats.read_rows(trained / "examples.parquet")) == 12
    assert written["curve"]["steps"] == list(range(7))
    after = written["tasks"]["left"]["accuracy"]["after"]
    assert written["curve"]["left.accuracy"]["mean"][3] == after["mean"]


def test_adapting_to_wrong_labels_hurts(trained: Path, arrays: Arrays) -> None:
    """What adapting gains must come from the labels of the support set."""
    chosen, algorithm, params = load_model(trained)
    episodes = episodes_of(chosen, arrays, step=7, count=30)
    wrong = {
        n: (t + torch.randint(1, 10, t.shape)) % 10 if n != "sum" else t
        for n, t in episodes.support.targets.items()
    }
    hits = []
    for steps, support in (
        (0, episodes.support),
        (10, episodes.support),
        (10, episodes.support._replace(targets=wrong)),
    ):
        found = []
        for index in range(30):
            episode = tree_map(lambda leaf, i=index: leaf[i], Episode(support, episodes.query))
            predicted = algorithm.predict(
                algorithm.adapt(params, episode.support, steps), episode.query.inputs
            )["left"]
            found.append((predicted.argmax(-1) == episode.query.targets["left"]).float().mean())
        hits.append(float(torch.stack(found).mean()))
    unadapted, true_labels, wrong_labels = hits
    assert true_labels > unadapted + 0.03
    assert wrong_labels < unadapted - 0.03


@pytest.mark.parametrize("learner", LEARNERS)
def test_predictions_ignore_the_other_queries(learner: str, arrays: Arrays) -> None:
    chosen = axes("cross_stitch", "static", learner)
    algorithm = chosen.build()
    params = algorithm.init_params()
    episode = tree_map(lambda leaf: leaf[0], episodes_of(chosen, arrays))
    adapted = algorithm.adapt(params, episode.support)
    together = algorithm.predict(adapted, episode.query.inputs)["left"][:1]
    alone = algorithm.predict(adapted, episode.query.inputs[:1])["left"]
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("learner", LEARNERS)
def test_validation_scores_are_those_of_evaluate(learner: str, arrays: Arrays) -> None:
    """Sums and counts over workers on one side, means over episodes on the other.

    MAML over more episodes than are scored at once.
    """
    number = 25 if learner == "maml" else 3
    chosen = axes("hard", "static", learner).override({"evaluate.val_episodes": number})
    algorithm = chosen.build()
    params = algorithm.init_params()
    with torch.no_grad():
        scores = validation_scores(chosen, algorithm, params, arrays, ExecutionConfig(), Workers())
    full = evaluate(chosen, algorithm, params, arrays, split="val", episodes=number).metrics
    assert scores["val.score"] == pytest.approx(full["score"]["after"]["mean"], abs=1e-5)
    assert scores["val.left.accuracy"] == pytest.approx(
        full["tasks"]["left"]["accuracy"]["after"]["mean"], abs=1e-5
    )
    assert (full["score"]["before"] is None) == (not algorithm.learner.supports_zero_shot)


def test_a_damaged_model_is_named(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text((trained / "config.yaml").read_text())
    with pytest.raises(UserError, match="expected a trained model, got none yet"):
        load_model(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(UserError, match="damaged"):
        load_model(tmp_path)
