"""Which of the single-task models that a search has trained are merged with each other."""

from pathlib import Path

import pytest

from raymtl.config import Experiment
from raymtl.evaluation.baselines import alone
from raymtl.pipeline.merging import Candidate, families_of
from tests.conftest import experiment

TASKS = ("left", "sum")
OWN = experiment(data__tasks=list(TASKS), sharing__name="cross_stitch", weighting__name="pcgrad")


def candidates(
    winner: Experiment, scores: dict[str, tuple[float | None, float | None]]
) -> dict[str, list[Candidate]]:
    """Those of the configuration and of the winner, by their scores; None for one that diverged."""
    return {
        task: [
            Candidate(alone(chosen, task), Path(f"{task}-{number}"), score)
            for number, (chosen, score) in enumerate(zip((OWN, winner), both, strict=True))
            if score is not None
        ]
        for task, both in scores.items()
    }


def test_models_of_one_encoder_and_learner_are_one_family() -> None:
    """Whatever rates they were trained with: of each task the better one counts."""
    winner = OWN.override({"train.lr": 0.03, "sharing.name": "mmoe"})
    found = families_of(OWN, candidates(winner, {"left": (0.5, 0.6), "sum": (0.4, 0.3)}))
    (family,) = found
    assert family.folders == {"left": Path("left-1"), "sum": Path("sum-0")}
    assert family.experiment.data == OWN.data
    assert family.experiment.sharing.name == "hard"
    assert family.experiment.weighting.name == "static"


@pytest.mark.parametrize("values", [{"learner.inner_lr": 0.3}, {"encoder.hidden": [5]}])
def test_models_of_different_ones_are_merged_apart(values: dict[str, float | list[int]]) -> None:
    winner = OWN.override(values)
    tried = candidates(winner, {"left": (0.5, 0.6), "sum": (0.4, 0.3)})
    one, other = families_of(OWN, tried)
    assert one.folders == {"left": Path("left-0"), "sum": Path("sum-0")}
    assert other.folders == {"left": Path("left-1"), "sum": Path("sum-1")}
    assert (one.experiment.learner, other.experiment.learner) == (OWN.learner, winner.learner)
    assert (one.experiment.encoder, other.experiment.encoder) == (OWN.encoder, winner.encoder)


def test_a_family_has_a_model_of_every_task() -> None:
    """Those that diverged leave none."""
    winner = OWN.override({"learner.inner_lr": 0.3})
    (family,) = families_of(OWN, candidates(winner, {"left": (None, 0.6), "sum": (0.4, 0.3)}))
    assert family.folders == {"left": Path("left-1"), "sum": Path("sum-1")}
    assert [*families_of(OWN, candidates(winner, {"left": (None, 0.6), "sum": (0.4, None)}))] == []
