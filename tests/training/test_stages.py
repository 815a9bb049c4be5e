"""Stages: one after the other from where the last one ended, and to the bit the same when interrupted in any."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from raymtl.config import Experiment, load
from raymtl.data.base import Arrays
from raymtl.distributed.share_builder import ShareBuilder
from raymtl.distributed.streaming import BuildEpisodes
from raymtl.evaluation.baselines import baselines
from raymtl.learners import MAML
from raymtl.reporting.html.training_plots import loss_plot, validation_plot
from raymtl.storage import formats
from raymtl.training import checkpoint
from raymtl.training.loop import local_batches
from raymtl.types import UserError
from tests.cli.test_cli import answer
from tests.conftest import experiment
from tests.narrowing import checked, present, several_stacks, shared_inputs
from tests.training import runs
from tests.training.runs import Stopped

HYBRID_CONFIG = Path(__file__).parent.parent.parent / "tune_configs" / "hybrid.yaml"


def staged(*stages: tuple[int, dict[str, Any]], **values: Any) -> Experiment:
    """Six steps in all, scored every second one."""
    plan = {
        "train__steps": 6,
        "train__eval_every": 2,
        "encoder__hidden": [6],
        "evaluate__val_episodes": 2,
    } | values
    return experiment(**plan).override(
        {"stages": [{"steps": steps, "set": set_} for steps, set_ in stages]}
    )


def run(
    chosen: Experiment, arrays: Arrays, folder: Path, stop_at: int | None = None
) -> list[dict[str, Any]]:
    """Every checkpoint stays, as `STEP` beside the model."""

    def scored(step: int) -> None:
        saved = folder / "checkpoints" / f"step_{step:08d}" / "model.safetensors"
        formats.save_params(folder / f"{step}.safetensors", formats.load_params(saved))

    return runs.run(chosen, arrays, folder, stop_at=stop_at, scored=scored)


def trained(chosen: Experiment, arrays: Arrays, folder: Path) -> dict[str, torch.Tensor]:
    run(chosen, arrays, folder)
    return load_file(folder / "model.safetensors")


PLAIN = {"learner.inner_steps": 0, "train.lr": 0.01}
HYBRID = (3, PLAIN)


def test_a_stage_that_differs_in_nothing_changes_nothing(
    arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    """Where the optimiser has no state and the rate no schedule, both of which start anew in each stage."""
    memoryless = {"train__optimizer": "sgd", "train__schedule": "constant", "train__lr": 0.05}
    one = trained(staged(**memoryless), arrays, tmp_path / "one")
    two = trained(staged((2, {}), **memoryless), arrays, tmp_path / "two")
    three = trained(
        staged((1, {}), (3, {"train.lr": 0.05}), **memoryless), arrays, tmp_path / "three"
    )
    start = staged().build().init_params()
    assert all(
        torch.equal(one[name], two[name]) and torch.equal(one[name], three[name]) for name in one
    )
    assert any(not torch.equal(one[name], start[name]) for name in one)


def test_stages_are_trainings_in_sequence(arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    """The first alone is a training by itself, and the next begins at its end."""
    chosen = staged(HYBRID)
    run(chosen, arrays, tmp_path / "hybrid")
    before = trained(chosen.stage_configs()[0].experiment, arrays, tmp_path / "alone")
    assert chosen.stage_configs()[0].experiment == staged(
        train__steps=3, learner__inner_steps=0, train__lr=0.01
    )
    at_the_seam = load_file(tmp_path / "hybrid" / "3.safetensors")
    assert all(torch.equal(before[name], at_the_seam[name]) for name in before)

    # A second stage that is too slow to move anything leaves what it began with.
    still = staged(HYBRID, train__lr=1e-30)
    after = trained(still, arrays, tmp_path / "still")
    assert all(torch.equal(before[name], after[name]) for name in before)
    moved = load_file(tmp_path / "hybrid" / "model.safetensors")
    assert any(not torch.equal(before[name], moved[name]) for name in before)


def test_each_stage_has_its_own_optimiser_and_schedule(
    arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    """The first step of a fresh Adam is as long as its rate in every coordinate that has a gradient."""
    chosen = staged((3, PLAIN), train__eval_every=1, train__lr=0.001)
    run(chosen, arrays, tmp_path / "run")
    before, after = (load_file(tmp_path / "run" / f"{step}.safetensors") for step in (3, 4))
    steps = (after["model.heads.left.bias"] - before["model.heads.left.bias"]).abs()
    assert steps.max() == pytest.approx(0.001, rel=1e-2)
    history = formats.read_rows(tmp_path / "run" / "history.parquet")
    assert [row["stage"] for row in history] == [0, 0, 0, 1, 1, 1]
    assert [row["lr"] for row in history] == pytest.approx(
        [0.01, 0.0075, 0.0025, 0.001, 0.00075, 0.00025]
    )


@pytest.mark.parametrize(
    ("stop_at", "stages"),
    [
        (2, (HYBRID,)),
        (3, (HYBRID,)),
        (4, (HYBRID,)),
        (
            5,
            (
                (3, {"learner.name": "meta_sgd", "weighting.name": "uncertainty"}),
                (2, {"mode.name": "alternating"}),
            ),
        ),
        (2, ((3, {"weighting.name": "dwa", "train.meta_batch": 2, "data.shots": 2}),)),
    ],
)
def test_resumed_stages_end_bit_identical(
    stop_at: int,
    stages: tuple[tuple[int, dict[str, Any]] | tuple[int, dict[str, str]], ...],
    arrays: dict[str, np.ndarray],
    tmp_path: Path,
) -> None:
    chosen = staged(*stages)
    straight = run(chosen, arrays, tmp_path / "straight")
    assert [report["step"] for report in straight] == sorted(
        {2, 4, 6, *(stage.stop for stage in chosen.stage_configs())}
    )
    with pytest.raises(Stopped):
        run(chosen, arrays, tmp_path / "broken", stop_at=stop_at)
    torch.manual_seed(123)
    run(chosen, arrays, tmp_path / "broken")
    first, second = (
        load_file(tmp_path / name / "model.safetensors") for name in ("straight", "broken")
    )
    assert set(first) == set(second)
    assert all(torch.equal(first[name], second[name]) for name in first)
    rows = [
        formats.read_rows(tmp_path / name / "history.parquet") for name in ("straight", "broken")
    ]
    assert [row["loss.left"] for row in rows[0]] == [row["loss.left"] for row in rows[1]]
    assert [row["step"] for row in rows[1]] == [1, 2, 3, 4, 5, 6]


def test_learner_parameters_pass_to_the_same_learner(
    arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    """To that one alone."""
    still = {"train__lr": 1e-30}
    learned = {"learner.name": "meta_sgd", "train.lr": 0.01, "weighting.name": "uncertainty"}
    same = trained(
        staged((3, learned), learner__name="meta_sgd", **still), arrays, tmp_path / "same"
    )
    first = load_file(tmp_path / "same" / "3.safetensors")
    rates = [name for name in first if name.startswith("learner.")]
    assert rates and all(torch.equal(same[name], first[name]) for name in rates)
    assert not any(name.startswith("weighting.") for name in same)
    other = trained(
        staged((3, learned), learner__name="maml_pp", **still), arrays, tmp_path / "other"
    )
    fresh = staged(learner__name="maml_pp").build().init_params()
    own = [name for name in other if name.startswith("learner.")]
    assert own and all(torch.equal(other[name], fresh[name]) for name in own)


def test_episodes_are_of_their_stage_everywhere(arrays: dict[str, np.ndarray]) -> None:
    chosen = staged((3, {"train.meta_batch": 2, "data.shots": 2}))
    build = BuildEpisodes(ShareBuilder(chosen, arrays, 1), first_step=0)
    locally = list(local_batches(chosen, arrays)(0))
    assert [step for step, _, _ in locally] == [0, 1, 2, 3, 4, 5]
    for step, share, stacks in locally:
        streamed = build(
            {"step": torch.tensor([step]).numpy(), "share": torch.tensor([share]).numpy()}
        )
        shape = (2, 20) if step < 3 else (3, 10)
        assert streamed[0] == step
        inputs, streamed_inputs = (
            shared_inputs(several_stacks(built)[0].support) for built in (stacks, streamed[2])
        )
        assert inputs.shape[:2] == shape
        assert torch.equal(streamed_inputs, inputs)


def test_a_damaged_checkpoint_is_named_whatever_the_stage(
    arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    with pytest.raises(Stopped):
        run(staged(HYBRID), arrays, tmp_path / "run", stop_at=4)
    saved = checkpoint.Saved(
        tmp_path / "run" / "checkpoints" / "step_00000004", {}, {"something": 1}
    )
    with pytest.raises(UserError, match=r"state\.pt: expected a checkpoint"):
        checkpoint.steps_done(saved)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "stages: [{steps: 4, set: {encoder.name: mlp}}]",
            ":1: stages.0.set: encoder.name: expected a value that",
        ),
        (
            "stages: [{steps: 4, set: {train.steps: 3}}]",
            ":1: stages.0.set: train.steps: expected a value that",
        ),
        (
            "stages: [{steps: 1000}]",
            ":1: stages: expected fewer steps together than train.steps: 1000",
        ),
        (
            "stages:\n- steps: 4\n  set: {learner.inner: 3}",
            ":3: stages.0.set: learner.inner: unknown key. Did you mean",
        ),
        (
            "stages: [{steps: 4, set: {learner.name: protonet}}]",
            "stages.0.set: learner.name: protonet cannot learn",
        ),
        ("stages: [{set: {}}]", ":1: stages.0.steps: expected a value, got none."),
        (
            "stages: [{steps: 3}]\nmode: {name: online}",
            "stages: expected none with mode.name: online",
        ),
        (
            "stages: [{steps: 9, set: {learner.inner_steps: 0}}]\nsearch: {learner.name: {choice: [maml, reptile]}}",
            "the search could suggest learner.name=reptile, which cannot run (stages.0.set: learner.inner_steps:",
        ),
    ],
)
def test_impossible_stages_are_refused(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        load(tmp_path / "bad.yaml")
    assert says in str(caught.value)


@pytest.mark.slow
def test_two_workers_take_the_same_stages(arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    """Streamed by Ray Data, and the seam between two stages in the middle of a block of ids."""
    ray = pytest.importorskip("ray")
    from raymtl.distributed.trainer import TrainerSpec, train
    from tests.distributed.local import local_ray

    chosen = staged(
        (3, {"learner.inner_steps": 0, "train.meta_batch": 5}), train__meta_batch=4, train__lr=0.001
    )
    alone = trained(chosen, arrays, tmp_path / "alone")
    (tmp_path / "two").mkdir()
    spec = TrainerSpec("stages/best", tmp_path / "ray", workers=2, cpus=1.0, gpus=0.0)
    with local_ray(num_cpus=3, include_dashboard=True):
        train(chosen, ray.put(arrays), tmp_path / "two", spec)
    together = load_file(tmp_path / "two" / "model.safetensors")
    for name, value in alone.items():
        torch.testing.assert_close(together[name], value, rtol=1e-3, atol=2e-4)
    history = formats.read_rows(tmp_path / "two" / "history.parquet")
    assert [row["stage"] for row in history] == [0, 0, 0, 1, 1, 1]


def test_staged_winners_are_compared_without_stages() -> None:
    """No other baseline has any."""
    chosen = staged((3, {"weighting.name": "pcgrad", "learner.inner_steps": 0}))
    models = baselines(chosen, chosen.override({"learner.inner_lr": 0.07}))
    (alone,) = models.pop("one-stage")
    assert (alone.stages, alone.train.steps, checked(alone.learner, MAML).inner_lr) == ((), 6, 0.07)
    assert models.pop("default") == (chosen,)
    assert not any(model.stages for tried in models.values() for model in tried)
    assert "one-stage" not in baselines(alone, alone)


def test_the_plots_mark_where_a_stage_begins(arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    run(staged(HYBRID, train__eval_every=1), arrays, tmp_path / "run")
    history = formats.read_rows(tmp_path / "run" / "history.parquet")
    for figure in (loss_plot(history), validation_plot(history)):
        lines = [shape.x0 for shape in present(figure).layout.shapes]
        assert lines and set(lines) == {3.5}
    without_stages = [{k: v for k, v in row.items() if k != "stage"} for row in history]
    assert not present(loss_plot(without_stages)).layout.shapes


def test_the_plan_tells_the_steps_of_the_stages(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = answer(monkeypatch, capsys, "train", str(HYBRID_CONFIG), "--dry-run", "--json")
    assert json.loads(out)["train"]["steps_of_stages"] == [150, 250]


def test_a_search_reaches_the_stages_through_the_configuration() -> None:
    chosen = staged(HYBRID).override({"learner.inner_lr": 0.07, "train.lr": 0.002})
    first, last = (stage.experiment for stage in chosen.stage_configs())
    one, two = (checked(stage.learner, MAML) for stage in (first, last))
    assert (one.inner_lr, first.train.lr, one.inner_steps) == (0.07, 0.01, 0)
    assert (two.inner_lr, last.train.lr) == (0.07, 0.002)
