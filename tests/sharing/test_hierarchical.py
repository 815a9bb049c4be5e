"""Supervision at levels of one trunk."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from raymtl.encoders import ConvSpec, LeNetSpec, MLPSpec
from raymtl.encoders.norm import NormedSpec
from raymtl.sharing import HierarchicalSpec
from raymtl.tasks import classification, regression
from raymtl.types import Task, UserError
from tests.conftest import experiment
from tests.sharing.laws import assert_predicts_as_hard_sharing, assert_vmap_is_a_loop, moved

pytestmark = pytest.mark.usefixtures("float64")

TASKS = (classification("a", 4), classification("b", 3), regression("c", 0.0, 1.0))
NAMES = tuple(task.name for task in TASKS)
ENCODERS = {
    "mlp": (MLPSpec(hidden=(7, 6, 5)), (9,)),
    "conv": (ConvSpec(channels=(4, 8, 4)), (1, 9, 9)),
    "lenet": (LeNetSpec(maps=(2, 3), hidden=(6,)), (1, 16, 16)),
}
over_the_encoders = pytest.mark.parametrize("encoder, shape", ENCODERS.values(), ids=ENCODERS)


def build(levels: Any, encoder: Any, shape: tuple[int, ...], tasks: Sequence[Task] = TASKS) -> Any:
    spec = HierarchicalSpec(levels=levels)
    assert spec.check(tasks, encoder.build(shape)) is None
    return spec.build(tasks, [encoder.build(shape)])


@over_the_encoders
def test_all_at_the_last_stage_is_hard_sharing(encoder: NormedSpec, shape: tuple[int, ...]) -> None:
    for levels in ({}, dict.fromkeys(NAMES, 3)):
        model, trunk = build(levels, encoder, shape), encoder.build(shape)
        trunk.stages = model.stages
        assert_predicts_as_hard_sharing(model, trunk, TASKS, shape, exactly=True)


@over_the_encoders
def test_a_task_has_no_gradient_above_its_level(
    encoder: NormedSpec, shape: tuple[int, ...]
) -> None:
    levels = {"a": 1, "b": 3, "c": 2}
    model = build(levels, encoder, shape)
    predictions, named = model(torch.randn(3, *shape)), dict(model.stages.named_parameters())
    for task, level in levels.items():
        grads = torch.autograd.grad(
            predictions[task].sum(), tuple(named.values()), allow_unused=True, retain_graph=True
        )
        reached = {
            int(name.split(".")[0])
            for name, value in zip(named, grads, strict=True)
            if value is not None
        }
        assert reached == set(range(level))
    assert {name.split(".")[1] for name in model.shared} == {"0", "1"}


@over_the_encoders
def test_the_features_are_the_flattened_stages(encoder: NormedSpec, shape: tuple[int, ...]) -> None:
    model = build({"a": 1, "b": 2}, encoder, shape)
    inputs = torch.randn(3, *shape)
    x, outputs = inputs, []
    for stage in model.stages:
        x = stage(x)
        outputs.append(x.reshape(3, -1))
    features = model(inputs, output="features")
    for task, expected in zip(NAMES, outputs, strict=True):
        torch.testing.assert_close(features[task], expected)
    assert list(model(inputs)) == list(NAMES)


@over_the_encoders
def test_own_inputs_go_together_up_to_their_levels(
    encoder: NormedSpec, shape: tuple[int, ...]
) -> None:
    model = build({"a": 1, "b": 2}, encoder, shape)
    own = {task: torch.randn(2 + i, *shape) for i, task in enumerate(NAMES)}
    together = model(own)
    for task in NAMES:
        torch.testing.assert_close(together[task], model(own[task])[task])


def test_stages_above_the_highest_level_are_absent() -> None:
    model = build({"a": 1, "b": 2, "c": 2}, *ENCODERS["mlp"])
    assert len(model.stages) == 2
    calls: list[int] = []
    for depth, stage in enumerate(model.stages):
        stage.register_forward_hook(lambda *_, depth=depth: calls.append(depth))
    model.features(torch.randn(2, 9), ("a",))
    assert calls == [0]


def test_a_single_low_task_shares_nothing() -> None:
    assert not build({"a": 1}, *ENCODERS["mlp"], TASKS[:1]).shared


@pytest.mark.parametrize(
    "levels, says",
    [
        (
            {"sun": 1},
            r"sharing\.levels\.sun: expected one of the tasks .*'left', 'right', 'sum'.* Did you mean sum",
        ),
        ({"sum": 3}, r"sharing\.levels\.sum: expected a stage of the encoder, 1 to 2, got 3"),
        ({"sum": 0}, r"sharing\.levels\.sum: expected greater than 0, got 0"),
    ],
)
def test_what_is_no_level_is_refused_by_name(levels: dict[str, int], says: str) -> None:
    with pytest.raises(UserError, match=says):
        experiment(sharing={"name": "hierarchical", "levels": levels})


@over_the_encoders
def test_vmap_equals_a_loop_on_several_levels(encoder: NormedSpec, shape: tuple[int, ...]) -> None:
    model = build({"a": 1, "b": 2}, encoder, shape)
    assert_vmap_is_a_loop(model, torch.randn(2, 3, *shape), moved(model))
