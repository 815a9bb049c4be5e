"""What the winner is compared with: valid on its own, at equal budget, and honest where something is missing."""

import pytest

from raymtl import runs
from raymtl.baselines import baselines, table
from raymtl.config import parse
from tests.conftest import experiment


def scores(**tasks: float) -> dict:
    def value(mean: float) -> dict:
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
    return {"tasks": per_task, "score": {"before": None, "after": value(0.5), "gain": None}, **common}


def test_every_baseline_is_a_valid_configuration_of_the_same_budget() -> None:
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
    assert models["single-sum"][1].learner.inner_lr == 0.5
    assert models["single-sum"][1].data.task_names == ("sum",)


def made(tmp_path, **models: dict) -> dict:
    for name, metrics in models.items():
        (tmp_path / name).mkdir()
        runs.write_json(tmp_path / name / "metrics.json", metrics)
    return {name.replace("_", "-"): tmp_path / name for name in models}


def test_the_table_joins_the_single_task_models(tmp_path) -> None:
    rows = table(made(tmp_path, winner=scores(a=0.6, b=0.5), single_a=scores(a=0.5), single_b=scores(b=0.4)))
    assert [row["name"] for row in rows] == ["winner", "single-task"]
    assert rows[0]["delta_p"] == -rows[0]["delta_m"] == pytest.approx((20 + 25) / 2)
    assert rows[1]["score"]["after"]["mean"] == 0.45
    assert rows[1]["delta_m"] == 0


def test_without_one_of_them_or_at_zero_there_is_no_delta(tmp_path) -> None:
    rows = table(made(tmp_path, winner=scores(a=0.6, b=0.5), single_a=scores(a=0.5)))
    assert [(row["name"], row["delta_m"]) for row in rows] == [("winner", None)]
    (tmp_path / "zero").mkdir()
    rows = table(made(tmp_path / "zero", winner=scores(a=0.6), single_a=scores(a=0.0)))
    assert rows[0]["delta_m"] is None
