"""The benchmarks of sinusoid and Omniglot: what they train is what they say, and scores are those of `evaluate`."""

from pathlib import Path

import pytest

from benchmarks import omniglot, sinusoid
from raymtl.data import Omniglot, Sinusoid
from raymtl.encoders import MLPSpec
from raymtl.evaluation.evaluate import evaluate, load_model
from raymtl.training.context import TrainContext
from raymtl.training.loop import local_batches, train_loop
from tests.narrowing import checked


@pytest.mark.parametrize("row", sinusoid.ROWS)
def test_every_row_has_the_references_protocol(row: str) -> None:
    chosen = sinusoid.chosen(row, workers=2, quick=False)
    assert checked(chosen.data, Sinusoid).shots == 10
    assert checked(chosen.encoder, MLPSpec).hidden == (40, 40)
    assert (chosen.train.steps, chosen.train.meta_batch) == (50_000, 25)
    assert chosen.evaluate.test_episodes == 1_000
    quick = sinusoid.chosen(row, workers=1, quick=True)
    assert (quick.learner, quick.train.steps, quick.train.workers) == (chosen.learner, 20, 1)


@pytest.mark.parametrize("row", sinusoid.ROWS)
def test_scores_go_to_ten_inner_steps(row: str, tmp_path: Path) -> None:
    chosen = sinusoid.chosen(row, workers=1, quick=True)
    context = TrainContext(lambda metrics: None, lambda row: None)
    train_loop(chosen, {}, local_batches(chosen, {}), context, tmp_path)
    found = sinusoid.scores(tmp_path)
    assert len(found) == len(sinusoid.STEPS) == len({score["mean"] for score in found})
    experiment, algorithm, params = load_model(tmp_path)
    own = evaluate(experiment, algorithm, params, {}).metrics["tasks"]["y"]["mse"]
    steps = algorithm.learner.num_steps
    assert found[0] == pytest.approx({key: own["before"][key] for key in ("mean", "ci95")})
    assert found[sinusoid.STEPS.index(steps)] == pytest.approx(
        {key: own["after"][key] for key in ("mean", "ci95")}
    )


def test_the_unadapted_floor_is_3_006() -> None:
    floor = sinusoid.unadapted(2_000)
    assert floor["mean"] == pytest.approx(3.006, abs=2 * floor["ci95"])
    assert floor["ci95"] < 0.2


@pytest.mark.parametrize("length", ["quick", "cpu", "full"])
@pytest.mark.parametrize("learner", omniglot.CONFIGS)
def test_every_length_of_omniglot_can_run(learner: str, length: omniglot.Length) -> None:
    chosen = omniglot.chosen(learner, 20, 5, "cpu", 1, length)
    data = checked(chosen.data, Omniglot)
    assert (chosen.learner.name, chosen.train.device) == (learner, "cpu")
    assert (data.ways, data.shots) == (20, 5)
    assert (chosen.evaluate.test_episodes, chosen.train.steps <= 4) == (
        {"quick": 4, "cpu": 600, "full": 1_000}[length],
        length == "quick",
    )
