"""The outer loop: exact resume, corrupt checkpoints, the record of every step."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from raymtl.config import Experiment
from raymtl.storage import formats
from raymtl.training import fastest, fastest_graph
from raymtl.types import DivergedError, UserError
from tests.conftest import LEARNERS, WEIGHTING, experiment, two_steps
from tests.training.runs import Stopped, run

# Each weighting and each learner once: their states are saved apart from each other.
PAIRS = [
    *((weighting, "maml") for weighting in WEIGHTING),
    *(("static", learner) for learner in LEARNERS if learner != "maml"),
]


def short(
    weighting: str = "static", learner: str = "maml", sharing: str = "hard", **values: Any
) -> Experiment:
    plan = {"train.steps": 6, "train.eval_every": 2} | {
        k.replace("__", "."): v for k, v in values.items()
    }
    return two_steps(sharing, weighting, learner).override(plan)


@pytest.mark.parametrize(("weighting", "learner"), PAIRS)
def test_resumed_runs_end_bit_identical(
    weighting: str, learner: str, arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    """The state of weighting and optimiser is, too, whatever later steps would make of it."""
    chosen = short(weighting, learner, train__steps=3)
    straight = run(chosen, arrays, tmp_path / "straight")
    with pytest.raises(Stopped):
        run(chosen, arrays, tmp_path / "broken", stop_at=2)
    torch.manual_seed(123)
    resumed = run(chosen, arrays, tmp_path / "broken")
    first, second = (
        load_file(tmp_path / name / "model.safetensors") for name in ("straight", "broken")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert {k: v for k, v in resumed[-1].items() if k != "seconds"} == {
        k: v for k, v in straight[-1].items() if k != "seconds"
    }
    histories = [
        formats.read_rows(tmp_path / name / "history.parquet") for name in ("straight", "broken")
    ]
    assert [row["step"] for row in histories[1]] == [1, 2, 3]
    assert [row["loss.left"] for row in histories[0]] == [row["loss.left"] for row in histories[1]]
    states = [
        torch.load(tmp_path / name / "checkpoints/step_00000003/state.pt", weights_only=True)
        for name in ("straight", "broken")
    ]
    for part in ("weighting", "optimizer"):
        torch.testing.assert_close(*(state[part] for state in states), rtol=0, atol=0)


def test_a_replayed_training_is_bit_identical(
    arrays: dict[str, np.ndarray], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    chosen = short(data__tasks=["left", "right"], train__steps=3)
    for graph in ("none", "replay"):
        run(chosen.override({"train.graph": graph}), arrays, tmp_path / graph)
    plain, replayed = (
        load_file(tmp_path / name / "model.safetensors") for name in ("none", "replay")
    )
    assert all(torch.equal(plain[name], replayed[name]) for name in plain)
    assert "train.graph" not in caplog.text  # no note that it ran without one


@pytest.mark.slow
def test_auto_graph_keeps_numbers_and_resumes(
    arrays: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It times a replay where that can pay, and a resumed training keeps what was chosen."""
    monkeypatch.setattr(fastest_graph, "REPLAY_RUNS", 3)
    monkeypatch.setattr(fastest_graph, "CLEARLY_FASTER", 100.0)  # so that the replay is chosen
    chosen = short(data__tasks=["left", "right"], train__steps=3)
    run(chosen.override({"train.graph": "none"}), arrays, tmp_path / "none")
    with pytest.raises(Stopped):
        run(chosen, arrays, tmp_path / "auto", stop_at=2)
    timed = formats.read_json(tmp_path / "auto" / "task_axis.json")
    assert timed["graph"] == "replay"
    assert set(timed["graph_ms"]) == {"none", "replay"}
    monkeypatch.setattr(fastest_graph, "REPLAY_RUNS", 1000)
    run(chosen, arrays, tmp_path / "auto")
    states = [
        torch.load(tmp_path / name / "checkpoints/step_00000003/state.pt", weights_only=True)
        for name in ("none", "auto")
    ]
    assert [state["graph"] for state in states] == ["none", "replay"]
    plain, replayed = (
        load_file(tmp_path / name / "model.safetensors") for name in ("none", "auto")
    )
    assert all(torch.equal(plain[name], replayed[name]) for name in plain)


def test_training_lowers_the_loss(arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    """And the record is whole."""
    chosen = experiment(
        train__steps=60,
        train__eval_every=30,
        train__lr=0.02,
        encoder__hidden=[64],
        learner__inner_lr=0.02,
    )
    reports = run(chosen, arrays, tmp_path / "run")
    rows = formats.read_rows(tmp_path / "run" / "history.parquet")
    total = [sum(row[f"loss.{task}"] for task in chosen.data.task_names) for row in rows]
    assert sum(total[-10:]) < 0.9 * sum(total[:10])
    assert {
        "lr",
        "grad_norm",
        "seconds",
        "data_wait_pct",
        "communication_pct",
        "weight.sum",
    } <= set(rows[0])
    assert all(row["communication_pct"] == 0 for row in rows)
    assert [row["step"] for row in rows if row["val.score"] is not None] == [30, 60]
    assert [report["step"] for report in reports] == [30, 60]
    assert rows[0]["lr"] == pytest.approx(0.02)
    assert rows[-1]["lr"] < 1e-4
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))


def test_auto_axis_leaves_the_weighting_alone(
    arrays: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It picks a way, keeps it and writes down what it timed."""
    monkeypatch.setattr(fastest, "SHARE", 100.0)  # there is time enough in two steps
    run(short("pcgrad", train__task_axis="auto", train__steps=2), arrays, tmp_path / "auto")
    state = torch.load(
        tmp_path / "auto" / "checkpoints" / "step_00000002" / "state.pt", weights_only=True
    )
    assert state["task_axis"] in ("vmap", "loop", "vmap 2")
    timed = formats.read_json(tmp_path / "auto" / "task_axis.json")
    assert timed["task_axis"] == state["task_axis"]
    assert {"vmap", "loop"} <= {"loop", *timed["episode_ms"]}
    assert min(timed["episode_ms"], key=timed["episode_ms"].get) == state["task_axis"]
    assert int(state["weighting"]["num_updates"]) == 2


def test_a_checkpoint_of_another_configuration_is_refused(
    arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    with pytest.raises(Stopped):
        run(short(), arrays, tmp_path / "run", stop_at=2)
    with pytest.raises(UserError, match="belongs to another configuration"):
        run(short(encoder__hidden=[12, 9]), arrays, tmp_path / "run")


def test_a_diverging_run_names_task_and_step(arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    wild = short(learner__inner_lr=50.0, learner__inner_steps=8)
    with pytest.raises(DivergedError, match=r"query loss of task 'left' is (nan|inf) at step 1 "):
        run(wild, arrays, tmp_path / "run")


def test_diverging_inner_loops_name_stable_rates(
    arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    """And the inner step at which they diverge."""
    told = r"after inner step (\d) the support loss is .*learner.inner_lr from (\S+) to (\S+)\). Lower learner.inner_lr"
    with pytest.raises(DivergedError, match=told) as raised:
        run(short(learner__inner_lr=1e4, learner__inner_steps=6), arrays, tmp_path / "wild")
    found = re.search(told, str(raised.value))
    assert found and int(found[1]) <= 6 and 0 < float(found[2]) < float(found[3]) < 1e4
    run(short(learner__inner_lr=float(found[3]), learner__inner_steps=6), arrays, tmp_path / "run")


def test_diverging_outer_loops_blame_no_inner_one(
    arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    with pytest.raises(DivergedError, match=r"at step \d+\. Lower learner.inner_lr or train.lr"):
        run(
            short(learner__inner_steps=0, train__lr=1e30, train__optimizer="sgd"),
            arrays,
            tmp_path / "run",
        )


def test_the_stitches_learn_faster_than_the_rest(
    arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    """Adam's first step is as long as its learning rate, so the multiple can be read off it."""
    chosen = short(
        sharing="cross_stitch",
        train__steps=1,
        train__eval_every=1,
        train__lr=0.001,
        sharing__lr_scale=10.0,
    )
    before = chosen.build().init_params()
    run(chosen, arrays, tmp_path / "run")
    after = load_file(tmp_path / "run" / "model.safetensors")
    moved = {name: float((after[name] - before[name].detach()).abs().max()) for name in after}
    assert moved["model.stitches"] == pytest.approx(0.01, rel=1e-2)
    assert moved["model.heads.left.weight"] == pytest.approx(0.001, rel=1e-2)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_weight_decay_is_decoupled(
    optimizer: str, arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    """One step with decay is one without it, less lr * weight_decay of what a weight was; biases and scales as before."""
    chosen = short(
        "uncertainty",
        sharing="cross_stitch",
        train__steps=1,
        train__eval_every=1,
        train__optimizer=optimizer,
        train__lr=0.01,
    )
    chosen = chosen.override({"sharing.lr_scale": 10.0})
    before = {name: value.detach() for name, value in chosen.build().init_params().items()}
    after = []
    for decay in (0.0, 0.5):
        run(chosen.override({"train.weight_decay": decay}), arrays, tmp_path / str(decay))
        after.append(load_file(tmp_path / str(decay) / "model.safetensors"))
    for name, value in before.items():
        rate = 0.01 * (10 if name == "model.stitches" else 1) * 0.5
        shrinks = name.startswith("model.") and value.ndim > 1
        lost = rate * value if shrinks else torch.zeros_like(value)
        assert torch.allclose(after[0][name] - after[1][name], lost, atol=1e-7), name
        assert not shrinks or lost.abs().max() > 1e-4
    assert {name.split(".")[0] for name in before} == {"model", "weighting"}
