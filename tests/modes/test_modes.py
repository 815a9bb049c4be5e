"""The optimisation modes: what each counts and moves, exact resume, accumulation, regret."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from raymtl.config import Experiment
from raymtl.data.base import Arrays
from raymtl.evaluation.baselines import comparators, regret
from raymtl.modes import Accumulation, Alternating, Hierarchical, Online
from raymtl.step.execution import ExecutionConfig
from raymtl.step.meta_gradient import MetaGradient, meta_gradient
from raymtl.storage import formats
from raymtl.training import fastest, trials
from raymtl.types import UserError
from raymtl.weighting import StaticSpec
from tests.conftest import (
    MODES,
    WEIGHTING,
    axes,
    episodes_of,
    experiment,
    perturbed,
    with_missing_labels,
)
from tests.narrowing import checked
from tests.training.runs import Stopped, run

TASKS = ("left", "right", "sum")


def trained(
    chosen: Experiment, arrays: Arrays, folder: Path, stop_at: int | None = None
) -> dict[str, torch.Tensor]:
    run(chosen, arrays, folder, stop_at=stop_at)
    return load_file(folder / "model.safetensors")


def short(mode: str, steps: int = 6, **values: Any) -> Experiment:
    plan = {"train.steps": steps, "train.eval_every": steps, "mode.name": mode}
    return experiment().override(plan | {k.replace("__", "."): v for k, v in values.items()})


@pytest.mark.parametrize("mode", MODES)
def test_resumed_runs_end_bit_identical(
    mode: str, arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    own: dict[str, dict[str, Any]] = {
        "online": {"mode__arrivals": {"sum": 2}},
        "hierarchical": {"mode__period": 2, "mode__strength": 1.0},
    }
    chosen = short(mode, steps=4, train__eval_every=3, **own.get(mode, {}))
    straight = trained(chosen, arrays, tmp_path / "straight")
    with pytest.raises(Stopped):
        trained(chosen, arrays, tmp_path / "broken", stop_at=3)
    resumed = trained(chosen, arrays, tmp_path / "broken")
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("weighting", "parts"),
    [*((weighting, 3) for weighting in WEIGHTING), ("static", 2), ("static", 5), ("pcgrad", 5)],
)
def test_accumulation_equals_the_joint_step(
    weighting: str, parts: int, arrays: dict[str, np.ndarray]
) -> None:
    """Also where labels are missing, and where there are more parts than episodes."""
    chosen = axes("hard", weighting, "maml")
    episodes = with_missing_labels(episodes_of(chosen, arrays, count=4))
    results = []
    for execution in (ExecutionConfig(), ExecutionConfig(micro_batches=parts)):
        algorithm = chosen.build()
        results.append(
            meta_gradient(algorithm, perturbed(algorithm), episodes, execution=execution)
        )
    torch.testing.assert_close(results[1].weights, results[0].weights, rtol=1e-6, atol=1e-9)
    for name, gradient in results[0].grads.items():
        torch.testing.assert_close(results[1].grads[name], gradient, rtol=1e-6, atol=1e-9)
    assert Accumulation(parts=parts).micro_batches == parts


def test_alternating_moves_the_heads_in_odd_steps_alone(
    arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    chosen = short("alternating", steps=1)
    start = chosen.build().init_params()
    first = trained(chosen, arrays, tmp_path / "one")
    second = trained(
        short("alternating", steps=2, train__schedule="constant"), arrays, tmp_path / "two"
    )
    moved = {name for name in start if not torch.equal(start[name], first[name])}
    assert moved == {name for name in start if not name.startswith("model.heads.")}
    one_of_two = trained(
        short("alternating", steps=1, train__schedule="constant"), arrays, tmp_path / "first"
    )
    then = {name for name in start if not torch.equal(one_of_two[name], second[name])}
    assert then == {name for name in start if name.startswith("model.heads.")}


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_tasks_are_drawn_by_size_to_power(power: float) -> None:
    sizes = {"left": 100, "right": 400, "sum": 1600}
    mode = Alternating(by="tasks", power=power)
    drawn = [next(iter(mode.query_tasks(step, 7, sizes))) for step in range(4000)]
    expected = np.array(list(sizes.values())) ** power
    shares = [drawn.count(task) / len(drawn) for task in sizes]
    np.testing.assert_allclose(shares, expected / expected.sum(), atol=0.03)
    assert drawn[:50] != [next(iter(mode.query_tasks(step, 8, sizes))) for step in range(50)]


def test_alternating_steps_move_one_head_alone(
    arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    """No loss of the other tasks is recorded."""
    chosen = short("alternating", steps=1, mode__by="tasks", learner__inner_steps=0)
    start = chosen.build().init_params()
    end = trained(chosen, arrays, tmp_path / "run")
    (task,) = chosen.mode.query_tasks(0, chosen.seed, dict.fromkeys(TASKS, 1))
    heads = {
        name.split(".")[2]
        for name in start
        if "heads" in name and not torch.equal(start[name], end[name])
    }
    assert heads == {task}
    (row,) = formats.read_rows(tmp_path / "run" / "history.parquet")
    assert {t for t in TASKS if row.get(f"loss.{t}") is not None} == {task}
    assert {t for t in TASKS if row[f"weight.{t}"] > 0} == {task}


def test_hierarchical_anchors_each_tasks_turn() -> None:
    """The tasks come in order."""
    mode = Hierarchical(order=("sum", "left", "right"), period=2)
    turns = [next(iter(mode.query_tasks(step, 0, dict.fromkeys(TASKS, 1)))) for step in range(8)]
    assert turns == ["sum", "sum", "left", "left", "right", "right", "sum", "sum"]
    assert [step for step in range(8) if mode.is_anchor_step(step)] == [0, 2, 4, 6]


@pytest.mark.slow
def test_the_anchor_holds_a_later_task_back(arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    """Plain descent, one turn of many steps: the stronger the anchor, the less the trunk moves from where it was."""
    moved = []
    for strength in (0.0, 0.1, 10.0):
        chosen = short(
            "hierarchical", steps=30, mode__period=30, mode__strength=strength, train__optimizer="sgd",
            train__lr=0.02, train__schedule="constant",
        )  # fmt: skip
        start = chosen.build().init_params()
        end = trained(chosen, arrays, tmp_path / f"{strength}")
        moved.append(float(sum((end[n] - start[n]).detach().square().sum() for n in start)))
    assert moved[0] > moved[1] > 5 * moved[2]


def test_tasks_are_unknown_before_they_arrive(
    arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    """Neither learned nor recorded."""
    chosen = short("online", steps=4, mode__arrivals={"sum": 3, "right": 2})
    start = chosen.build().init_params()
    trained(chosen, arrays, tmp_path / "all")
    rows = formats.read_rows(tmp_path / "all" / "history.parquet")
    seen = [{task for task in TASKS if row[f"loss.{task}"] is not None} for row in rows]
    assert seen == [{"left"}, {"left"}, {"left", "right"}, set(TASKS)]
    early = trained(
        short("online", steps=3, mode__arrivals={"sum": 3, "right": 2}), arrays, tmp_path / "early"
    )
    assert torch.equal(early["model.heads.sum.weight"], start["model.heads.sum.weight"])
    assert not torch.equal(early["model.heads.right.weight"], start["model.heads.right.weight"])


def test_regret_is_against_the_best_fixed_weights(
    arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    def history(name: str, left: list[float], right: list[float | None]) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        rows = [
            {"step": i, "loss.left": a, "loss.right": b}
            for i, (a, b) in enumerate(zip(left, right, strict=True))
        ]
        formats.write_rows(folder / "history.parquet", rows)
        return folder

    own = history("own", [1.0, 2.0, 3.0], [None, 4.0, 5.0])  # means 1, 3, 4
    compared = {
        "a": history("a", [1.0, 2.0, 2.0], [None, 2.0, 2.0]),  # 1, 2, 2
        "b": history("b", [0.5, 9.0, 9.0], [None, 9.0, 9.0]),
        "diverged": history("diverged", [0.0], [0.0]),
    }
    found = regret(own, compared)
    assert found is not None
    assert found["best"] == "a" and found["regret"] == pytest.approx(3.0)
    assert found["curve"] == pytest.approx([0.0, 1.0, 3.0])
    assert set(found["fixed_loss_per_step"]) == {"a", "b"}
    assert regret(own, {"diverged": compared["diverged"]}) is None


def test_comparators_are_fixed_weights_on_the_same_stream() -> None:
    models = comparators(
        short("online", mode__comparators=4, mode__arrivals={"sum": 2}, weighting__name="famo")
    )
    assert len(models) == 4
    assert all(checked(model.mode, Online).arrivals == {"sum": 2} for model in models.values())
    weights = {
        name: tuple(checked(model.weighting, StaticSpec).weights.values())
        for name, model in models.items()
    }
    assert len(set(weights.values())) == 4
    assert weights["fixed-0"] == pytest.approx([1 / 3] * 3)
    assert comparators(short("weighted")) == {}


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (
            {"mode.name": "hierarchical", "mode.order": ["left", "sum"]},
            "mode.order: expected every task of",
        ),
        (
            {"mode.name": "online", "mode.arrivals": {"lift": 3}},
            "mode.arrivals.lift: expected one of the tasks",
        ),
        (
            {"mode.name": "online", "mode.arrivals": dict.fromkeys(TASKS, 1)},
            "mode.arrivals: expected a task at step 0",
        ),
        (
            {"mode.name": "hierarchical", "weighting.name": "pcgrad"},
            "lets one task count in each step",
        ),
        ({"mode.name": "accumulation", "learner.name": "reptile"}, "has none to divide"),
    ],
)
def test_what_a_mode_cannot_do_is_refused(values: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        experiment().override(values)


def test_online_with_no_arrivals_is_the_joint_step() -> None:
    assert Online().support_tasks(0, TASKS) == frozenset(TASKS)


def test_uncounted_tasks_heads_stand_still(arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    """Momentum from its last turn must not carry it on."""
    plan = {
        "learner__inner_steps": 0,
        "mode__period": 3,
        "mode__strength": 0.0,
        "train__schedule": "constant",
    }
    after_turn, later = (
        trained(short("hierarchical", steps=steps, **plan), arrays, tmp_path / str(steps))
        for steps in (3, 6)
    )
    assert torch.equal(after_turn["model.heads.left.weight"], later["model.heads.left.weight"])
    assert not torch.equal(
        after_turn["model.heads.right.weight"], later["model.heads.right.weight"]
    )


def test_a_high_power_takes_the_largest_task_alone() -> None:
    mode = Alternating(by="tasks", power=300)
    assert {
        next(iter(mode.query_tasks(step, 0, {"a": 1000, "b": 1400}))) for step in range(50)
    } == {"b"}


def test_timing_the_axis_respects_micro_batches(
    arrays: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    monkeypatch.setattr(fastest, "SHARE", 100.0)  # there is time enough in a single step

    def counted(*given: Any) -> MetaGradient:
        seen.append(given[4].micro_batches)
        return meta_gradient(*given)

    monkeypatch.setattr(trials, "meta_gradient", counted)
    trained(
        short("accumulation", steps=1, train__task_axis="auto", mode__parts=3),
        arrays,
        tmp_path / "run",
    )
    assert len(seen) >= 5 and set(seen) == {3}
