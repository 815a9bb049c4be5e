"""Sluice networks."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from raymtl.encoders import ConvSpec, LeNetSpec, MLPSpec
from raymtl.encoders.norm import NormedSpec
from raymtl.sharing import SluiceSpec
from raymtl.tasks import classification, regression
from raymtl.types import Task
from tests.sharing.laws import moved

pytestmark = pytest.mark.usefixtures("float64")

TASKS = (classification("a", 4), classification("b", 3), regression("c", 0.0, 1.0))
NAMES = tuple(task.name for task in TASKS)
ENCODERS = {
    "mlp": (MLPSpec(hidden=(6, 5)), (4,)),
    "conv": (ConvSpec(channels=(4, 8)), (1, 6, 6)),
    "lenet": (LeNetSpec(maps=(2, 3), hidden=(6,)), (1, 16, 16)),
}
over_the_encoders = pytest.mark.parametrize("encoder, shape", ENCODERS.values(), ids=ENCODERS)


def build(
    encoder: Any, shape: tuple[int, ...], tasks: Sequence[Task] = TASKS, **numbers: Any
) -> Any:
    return SluiceSpec(**numbers).build(tasks, [encoder.build(shape) for _ in range(2 * len(tasks))])


@over_the_encoders
def test_identity_alpha_gives_independent_networks(
    encoder: NormedSpec, shape: tuple[int, ...]
) -> None:
    """With a beta of the last stage alone."""
    model, inputs = build(encoder, shape, own=1.0), torch.randn(3, *shape)
    torch.testing.assert_close(model.alpha[0], torch.eye(6))
    for name in NAMES:
        towers = [model.towers[name][i](inputs) for i in range(2)]
        expected = model.heads[name](torch.cat(towers, 1))
        torch.testing.assert_close(model(inputs)[name], expected)


@over_the_encoders
def test_features_equal_the_papers_loop(encoder: NormedSpec, shape: tuple[int, ...]) -> None:
    model, inputs = build(encoder, shape), torch.randn(2, *shape)
    model.load_state_dict(moved(model, 0.3))
    features = model(inputs, output="features")
    towers = [model.towers[name][i] for name in NAMES for i in range(2)]
    x, expected = [inputs] * 6, dict.fromkeys(NAMES, torch.zeros(()))
    for depth in range(len(towers[0].stages)):
        outputs = [tower.stages[depth](own) for tower, own in zip(towers, x, strict=True)]
        x = [sum(model.alpha[depth, i, j] * outputs[j] for j in range(6)) for i in range(6)]
        for t, name in enumerate(NAMES):
            pair = x[2 * t], x[2 * t + 1]
            if depth + 1 < len(towers[0].stages):
                pooled = [own.mean((2, 3)) if own.ndim == 4 else own for own in pair]
                seen = model.adapters[name][depth](torch.cat(pooled, 1))
            else:
                seen = torch.cat([own.reshape(2, -1) for own in pair], 1)
            expected[name] = expected[name] + model.beta[name][depth] * seen
    for name in NAMES:
        torch.testing.assert_close(features[name], expected[name])


@pytest.mark.parametrize("tasks", [TASKS, TASKS[:1]], ids=["three", "one"])
def test_mixtures_start_from_rows_that_sum_to_one(tasks: tuple[Task, ...]) -> None:
    model = build(*ENCODERS["lenet"], tasks)
    num_subspaces = 2 * len(tasks)
    torch.testing.assert_close(model.alpha.sum(-1), torch.ones(3, num_subspaces))
    torch.testing.assert_close(
        model.alpha.diagonal(dim1=1, dim2=2), torch.full((3, num_subspaces), 0.9)
    )
    for beta in model.beta.values():
        torch.testing.assert_close(beta, torch.tensor([0.05, 0.05, 0.9]))
    assert model.lr_scale == {"alpha": 10.0, "beta": 10.0}
    assert {name.split(".")[0] for name, _ in model.named_parameters()} >= set(model.lr_scale)


def orthogonal(model: Any) -> dict[str, torch.Tensor]:
    """Parameters whose first subspaces put out the first half of the numbers alone, the second ones the other half."""
    params = moved(model, 1.0)
    for name, value in params.items():
        if name.startswith("towers.") and value.ndim > 1:
            half = len(value) // 2
            value[slice(half, None) if name.split(".")[2] == "0" else slice(half)] = 0.0
    return params


@over_the_encoders
def test_orthogonal_subspaces_have_no_penalty(encoder: NormedSpec, shape: tuple[int, ...]) -> None:
    """Others have one."""
    model = build(encoder, shape, strength=0.7)
    params = orthogonal(model)
    assert model.penalty(params) == 0
    for name in params:
        if name.startswith("towers.b.0") and params[name].ndim > 1:
            tilted = dict(params)
            tilted[name] = params[name] + 0.1 * torch.randn_like(params[name])
            assert model.penalty(tilted) > 1e-6


@over_the_encoders
def test_the_penalty_is_the_papers_sum(encoder: NormedSpec, shape: tuple[int, ...]) -> None:
    model = build(encoder, shape, strength=0.7)
    params = moved(model, 0.3)
    expected = torch.zeros(())
    for task in NAMES:
        for key, _ in model.towers[task][0].named_parameters():
            if key.endswith("weight") and params[f"towers.{task}.0.{key}"].ndim > 1:
                one, other = (params[f"towers.{task}.{i}.{key}"].flatten(1) for i in range(2))
                expected = expected + 0.7 * torch.linalg.matrix_norm(one.T @ other) ** 2
    torch.testing.assert_close(model.penalty(params), expected)
    assert expected > 0


def test_the_penalty_is_invariant_to_output_rotation() -> None:
    model = build(*ENCODERS["mlp"])
    params = moved(model, 1.0)
    rotation, _ = torch.linalg.qr(torch.randn(6, 6))
    rotated = {
        k: rotation @ v if k.startswith("towers.") and v.shape[:1] == (6,) and v.ndim == 2 else v
        for k, v in params.items()
    }
    assert not torch.equal(
        rotated["towers.a.0.stages.0.1.weight"], params["towers.a.0.stages.0.1.weight"]
    )
    torch.testing.assert_close(model.penalty(rotated), model.penalty(params))


def test_only_alpha_is_shared_among_the_mixers() -> None:
    """Beta and the adapters are the tasks' own."""
    shared = build(*ENCODERS["mlp"]).shared
    assert {name.split(".")[0] for name in shared} == {"towers", "alpha"}


@over_the_encoders
def test_one_task_is_a_network_twice_as_wide(encoder: NormedSpec, shape: tuple[int, ...]) -> None:
    """With an alpha that is the identity."""
    model, inputs = build(encoder, shape, TASKS[:1], own=1.0), torch.randn(3, *shape)
    expected = model.heads["a"](torch.cat([tower(inputs) for tower in model.towers["a"]], 1))
    torch.testing.assert_close(model(inputs)["a"], expected)
    assert not model.shared


def test_towers_run_once_for_all_tasks() -> None:
    model = build(*ENCODERS["mlp"])
    calls: list[int] = []
    for name in NAMES:
        for tower in model.towers[name]:
            tower.stages[0].register_forward_hook(
                lambda _, inputs, __: calls.append(len(inputs[0]))
            )
    own = {task: torch.randn(1 + i, 4) for i, task in enumerate(NAMES)}
    model(own)
    assert calls == [6] * 6


@pytest.mark.parametrize("numbers", [{"own": 1.1}, {"strength": -1.0}, {"lr_scale": 0.0}])
def test_what_is_no_sluice_is_refused(numbers: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match=next(iter(numbers))):
        SluiceSpec(**numbers)
