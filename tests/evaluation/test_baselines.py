"""What the winner is compared with: valid on its own, at equal budget, and honest where something is missing."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raymtl.config import Experiment, parse
from raymtl.evaluation.baselines import baselines, comparators, planned, table
from raymtl.learners import MAML
from raymtl.reporting.html import outcome, result_rows
from raymtl.storage import formats
from tests.conftest import MODES, episodes_of, experiment
from tests.narrowing import checked


def scores(**tasks: float) -> dict[str, Any]:
    def value(mean: float) -> dict[str, Any]:
        return {"mean": mean, "ci95": 0.01}

    per_task = {
        name: {
            "accuracy": {
                "higher_is_better": True,
                "ratio_scale": True,
                "before": None,
                "after": value(mean),
                "gain": None,
            }
        }
        for name, mean in tasks.items()
    }
    common = {"transductive": False, "num_parameters": 1, "steps": 2, "train_seconds": 3.0}
    return {
        "tasks": per_task,
        "score": {"before": None, "after": value(0.5), "gain": None},
        **common,
    }


def test_every_baseline_has_the_same_budget() -> None:
    """And is a valid configuration."""
    chosen = experiment(weighting__name="pcgrad", sharing__name="cross_stitch").override(
        {"tune.metric": "val.left.accuracy"}
    )
    models = baselines(chosen, chosen.override({"learner.inner_lr": 0.5}))
    assert set(models) == {"default", "joint", "single-left", "single-right", "single-sum"}
    for tried in models.values():
        for model in tried:
            assert parse(model.model_dump(mode="json")) == model
            assert model.train == chosen.train
    assert models["joint"][0].learner.num_steps == 0
    assert checked(models["single-sum"][1].learner, MAML).inner_lr == 0.5
    assert models["single-sum"][1].data.task_names == ("sum",)


def labels_a_step(model: Experiment, arrays: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Task -> the labelled examples that an outer step learns from."""
    episodes = episodes_of(model, arrays)
    batches = episodes if model.learner.num_steps else [episodes.query]
    return {
        task: sum(batch.targets[task].numel() for batch in batches)
        for task in model.data.task_names
    }


def test_every_baseline_sees_as_many_labels_a_step(arrays: dict[str, np.ndarray]) -> None:
    chosen = experiment(data__shots=2, data__queries=3)
    own = labels_a_step(chosen, arrays)
    for models in baselines(chosen, chosen).values():
        for model in models:
            seen = labels_a_step(model, arrays)
            assert seen == {task: own[task] for task in seen}


@pytest.mark.parametrize("mode", MODES)
def test_single_task_models_have_no_mode_of_several(mode: str) -> None:
    chosen = experiment(mode__name=mode)
    for model in baselines(chosen, chosen)["single-left"]:
        assert model.mode.name == "weighted"


@pytest.mark.parametrize(
    ("asked", "names"),
    [
        ("all", {"default", "joint", "single-left", "single-right", "single-sum"}),
        ("none", set()),
        ("joint", {"joint"}),
        (["default", "joint"], {"default", "joint"}),
        (["single"], {"single-left", "single-right", "single-sum"}),
        ("merged", {"single-left", "single-right", "single-sum"}),
    ],
)
def test_baselines_are_those_that_are_asked_for(asked: str | list[str], names: set[str]) -> None:
    chosen = experiment().override({"tune.baselines": asked})
    assert set(baselines(chosen, chosen)) == names


def test_the_plan_holds_every_training_and_its_steps() -> None:
    chosen = experiment(train__steps=6).override(
        {"tune.trials": 5, "tune.baselines": ["default", "single"]}
    )
    trainings = planned(chosen, searching=True)
    assert trainings == [
        ("trials", 5, 6), ("winner", 1, 6), ("default", 1, 6),
        ("single-left", 2, 6), ("single-right", 2, 6), ("single-sum", 2, 6),
    ]  # fmt: skip
    assert planned(chosen, searching=False) == [("model", 1, 6)]


def test_the_plan_holds_a_modes_comparisons() -> None:
    chosen = experiment(mode__name="online", train__steps=6)
    names = {each.name for each in planned(chosen, searching=False)}
    assert names == {"model", *comparators(chosen)} and len(names) > 1


def test_without_baselines_the_winner_stands_alone(tmp_path: Path) -> None:
    (row,) = table(made(tmp_path, winner=scores(a=0.6, b=0.5)))
    assert (row["delta_m"], row["delta_p"], row["against"]) == (None, None, {})
    assert "no other model in this run to compare it with" in outcome(
        result_rows({"models": [row]})
    )


def test_a_baseline_alone_is_compared_without_deltas(tmp_path: Path) -> None:
    rows = table(made(tmp_path, winner=scores(a=0.6, b=0.5), joint=scores(a=0.5, b=0.5)))
    assert [(row["name"], row["delta_m"], row["delta_p"]) for row in rows] == [
        ("winner", None, None),
        ("joint", None, None),
    ]
    assert "joint (0.500" in outcome(result_rows({"models": rows}))


def made(tmp_path: Path, **models: dict[str, Any]) -> dict[str, Path]:
    for name, metrics in models.items():
        (tmp_path / name).mkdir()
        formats.write_json(tmp_path / name / "metrics.json", metrics)
    return {name.replace("_", "-"): tmp_path / name for name in models}


def test_the_table_joins_the_single_task_models(tmp_path: Path) -> None:
    rows = table(
        made(tmp_path, winner=scores(a=0.6, b=0.5), single_a=scores(a=0.5), single_b=scores(b=0.4))
    )
    assert [row["name"] for row in rows] == ["winner", "single-task"]
    assert rows[0]["delta_p"] == -rows[0]["delta_m"] == pytest.approx((20 + 25) / 2)
    assert rows[1]["score"]["after"]["mean"] == 0.45
    assert rows[1]["delta_m"] == 0


def test_incomplete_or_zero_baselines_give_no_delta(tmp_path: Path) -> None:
    rows = table(made(tmp_path, winner=scores(a=0.6, b=0.5), single_a=scores(a=0.5)))
    assert [(row["name"], row["delta_m"]) for row in rows] == [("winner", None)]
    (tmp_path / "zero").mkdir()
    rows = table(made(tmp_path / "zero", winner=scores(a=0.6), single_a=scores(a=0.0)))
    assert rows[0]["delta_m"] is None
