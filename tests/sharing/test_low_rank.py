"""Low-rank sharing: a basis of encoders, and coefficients of each task."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch.func import functional_call

from raymtl.encoders import ConvSpec, MLPSpec
from raymtl.encoders.norm import NormedSpec
from raymtl.sharing import LowRankSpec, SoftSpec
from raymtl.tasks import classification, regression
from raymtl.types import Task
from tests.sharing.laws import (
    assert_predicts_as_hard_sharing,
    assert_vmap_is_a_loop,
    moved,
    touched,
)

pytestmark = pytest.mark.usefixtures("float64")

TASKS = (
    classification("a", 4),
    classification("b", 3),
    regression("c", 0.0, 1.0),
    regression("d", 0.0, 1.0),
)
NAMES = tuple(task.name for task in TASKS)
ENCODERS = {"mlp": (MLPSpec(hidden=(5, 4)), (6,)), "conv": (ConvSpec(channels=(4, 8)), (1, 6, 6))}
over_the_encoders = pytest.mark.parametrize("encoder, shape", ENCODERS.values(), ids=ENCODERS)
over_the_forms = pytest.mark.parametrize("form", ["matrix", "tensor"])


def build(
    encoder: Any, shape: tuple[int, ...], tasks: Sequence[Task] = TASKS, **numbers: Any
) -> Any:
    spec = LowRankSpec(**numbers)
    return spec.build(tasks, [encoder.build(shape) for _ in range(spec.num_encoders(len(tasks)))])


def stacked(model: Any, names: Any = NAMES) -> dict[str, torch.Tensor]:
    """Parameter of the encoder -> the tasks' values, [numel, K]."""
    of_tasks = [model.encoder_params(task) for task in names]
    return {key: torch.stack([own[key].flatten() for own in of_tasks], 1) for key in of_tasks[0]}


@over_the_forms
@over_the_encoders
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_stacked_parameters_have_at_most_the_rank(
    encoder: NormedSpec, shape: tuple[int, ...], rank: int, form: str
) -> None:
    model = build(encoder, shape, rank=rank, form=form)
    model.load_state_dict(
        moved(model, 1.0)
    )  # off the equal values that a normalisation starts from
    for columns in stacked(model).values():
        assert torch.linalg.matrix_rank(columns, rtol=1e-9).item() == min(rank, len(columns))


@over_the_encoders
def test_rank_of_all_tasks_reaches_every_network(
    encoder: NormedSpec, shape: tuple[int, ...]
) -> None:
    """The factors from a singular value decomposition of any towers: the predictions are those of the towers."""
    model, towers = build(encoder, shape, rank=4), [encoder.build(shape) for _ in TASKS]
    params = moved(model)
    coefficients: dict[str, list[torch.Tensor]] = {task: [] for task in NAMES}
    for key, value in towers[0].named_parameters():
        columns = torch.stack(
            [tower.get_parameter(key).detach().flatten() + 0.1 for tower in towers], 1
        )
        left, scales, right = torch.linalg.svd(columns, full_matrices=True)
        basis = torch.zeros(len(columns), 4)
        basis[:, : len(scales)] = left[:, : len(scales)] * scales
        params[f"factors.{key.replace('.', '_')}.basis"] = basis.T.reshape(4, *value.shape)
        for column, task in enumerate(NAMES):
            coefficients[task].append(right[:, column])
    params |= {f"coefficients.{task}": torch.stack(rows) for task, rows in coefficients.items()}

    with torch.no_grad():
        for tower in towers:
            for value in tower.parameters():
                value.add_(0.1)
    inputs = torch.randn(3, *shape)
    features = functional_call(model, params, (inputs,), {"output": "features"})
    for task, tower in zip(NAMES, towers, strict=True):
        torch.testing.assert_close(features[task], tower(inputs))


def test_rank_of_all_numbers_reaches_every_network() -> None:
    """Four tasks and two numbers in each parameter: rank 2 holds them all."""
    model = build(MLPSpec(hidden=(2,)), (1,), rank=2)
    wanted = torch.randn(2, 4)
    params = moved(model)
    for key in ("weight", "bias"):
        params[f"factors.stages_0_1_{key}.basis"] = torch.eye(2).reshape(
            params[f"factors.stages_0_1_{key}.basis"].shape
        )
    params |= {
        f"coefficients.{task}": wanted[:, [t]].T.repeat(2, 1) for t, task in enumerate(NAMES)
    }
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.copy_(params[name])
    for columns in stacked(model).values():
        torch.testing.assert_close(columns, wanted)


@over_the_encoders
def test_a_full_tensor_reaches_the_matrix_form(encoder: NormedSpec, shape: tuple[int, ...]) -> None:
    """U_out^T W U_in for its core, where the factors are orthogonal and square."""
    matrix, tensor = build(encoder, shape), build(encoder, shape, form="tensor", kept=1.0)
    params = dict(tensor.named_parameters()) | dict(matrix.named_parameters())
    for key, factors in tensor.factors.items():
        if hasattr(factors, "core"):
            basis = matrix.factors[key].basis
            params[f"factors.{key}.core"] = torch.einsum(
                "or,koi...,ic->krc...", factors.outputs, basis, factors.inputs
            )
    inputs = torch.randn(3, *shape)
    reached = functional_call(
        tensor, {k: v for k, v in params.items() if k in dict(tensor.named_parameters())}, (inputs,)
    )
    for task, prediction in matrix(inputs).items():
        torch.testing.assert_close(reached[task], prediction)


def test_a_tensor_keeps_its_share_of_channels() -> None:
    model = build(*ENCODERS["conv"], form="tensor", kept=0.5)
    core = model.factors["stages_1_0_weight"]
    assert (
        core.core.shape == (2, 4, 2, 3, 3)
        and core.outputs.shape == (8, 4)
        and core.inputs.shape == (4, 2)
    )
    matrix = build(*ENCODERS["conv"])
    assert (
        sum(v.numel() for v in core.parameters())
        < 0.5 * matrix.factors["stages_1_0_weight"].basis.numel()
    )
    for task in NAMES:
        assert (
            torch.linalg.matrix_rank(
                model.encoder_params(task)["stages.1.0.weight"].flatten(1)
            ).item()
            == 4
        )


@over_the_forms
def test_weights_start_at_an_ordinary_scale(form: str) -> None:
    encoder, shape = MLPSpec(hidden=(60, 50)), (40,)
    model, ordinary = build(encoder, shape, rank=3, form=form), encoder.build(shape)
    for task in NAMES:
        for key, value in model.encoder_params(task).items():
            if "weight" in key:
                ratio = value.square().mean() / ordinary.get_parameter(key).square().mean()
                assert 0.85 < ratio < 1.15, (task, key)


@over_the_forms
def test_a_normalisation_starts_as_one(form: str) -> None:
    encoder, shape = ENCODERS["conv"]
    model = build(encoder, shape, rank=3, form=form)
    for task in NAMES:
        own = model.encoder_params(task)
        torch.testing.assert_close(own["stages.0.1.weight"], torch.ones(4))
        torch.testing.assert_close(own["stages.0.1.bias"], torch.zeros(4))


def test_tasks_start_apart() -> None:
    model = build(*ENCODERS["mlp"])
    one, other = (model.encoder_params(task)["stages.0.1.weight"] for task in ("a", "b"))
    assert not torch.allclose(one, other)


@over_the_encoders
def test_rank_one_with_equal_coefficients_is_hard_sharing(
    encoder: NormedSpec, shape: tuple[int, ...]
) -> None:
    """One coefficient, normalised, is 1 for every task."""
    model, trunk = build(encoder, shape, rank=1), encoder.build(shape)
    trunk.load_state_dict(model.encoder_params("a"))
    assert_predicts_as_hard_sharing(model, trunk, TASKS, shape)


@pytest.mark.parametrize("numbers", [{}, {"form": "tensor", "kept": 1.0}])
def test_one_task_alone_starts_as_an_ordinary_network(numbers: dict[str, Any]) -> None:
    encoder, shape = ENCODERS["mlp"]
    tower = encoder.build(shape)
    model = LowRankSpec(**numbers).build(TASKS[:1], [tower])
    alone = SoftSpec().build(TASKS[:1], [tower])
    alone.heads = model.heads
    inputs = torch.randn(3, *shape)
    torch.testing.assert_close(model(inputs)["a"], alone(inputs)["a"])
    assert not model.shared


@over_the_forms
def test_the_template_is_not_part_of_the_module(form: str) -> None:
    model = build(*ENCODERS["conv"], form=form)
    first = {name.split(".")[0] for name in model.state_dict()}
    assert first == {"factors", "coefficients", "heads"}
    assert not list(model.buffers())
    assert all(
        not isinstance(part, type(ENCODERS["conv"][0].build((1, 6, 6)))) for part in model.modules()
    )


@over_the_encoders
def test_the_tensor_form_obeys_the_laws(encoder: NormedSpec, shape: tuple[int, ...]) -> None:
    model = build(encoder, shape, form="tensor")
    inputs = torch.randn(2, 3, *shape)
    predictions = model(inputs[0])
    reached = [touched(predictions[task], model) for task in NAMES]
    everything = {name for name, _ in model.named_parameters()}
    assert set().union(*reached) == everything
    assert {
        name for name in everything if sum(name in of_task for of_task in reached) > 1
    } == model.shared
    assert_vmap_is_a_loop(model, inputs, moved(model))


@over_the_forms
def test_the_penalty_is_the_papers_sum(form: str) -> None:
    model = build(*ENCODERS["mlp"], form=form, sparsity=0.3, decay=0.7)
    params = {
        name: -value if name.startswith("coefficients") else value
        for name, value in moved(model).items()
    }  # the coefficients start positive
    expected = 0.0
    for name, value in params.items():
        for number in value.flatten().tolist():
            expected += 0.3 * math.fabs(number) if name.startswith("coefficients") else 0.0
            expected += 0.7 * number**2 if name.startswith("factors") else 0.0
    torch.testing.assert_close(model.penalty(params), torch.tensor(expected))


def test_the_rank_is_at_most_the_tasks() -> None:
    assert LowRankSpec(rank=9).num_encoders(4) == 4


@pytest.mark.parametrize("numbers", [{"rank": 0}, {"kept": 0.0}, {"kept": 1.1}, {"form": "cube"}])
def test_what_is_no_factorisation_is_refused(numbers: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(numbers))):
        LowRankSpec(**numbers)
