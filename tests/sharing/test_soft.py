"""Soft parameter sharing."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from raymtl.encoders import ConvSpec, MLPSpec
from raymtl.encoders.norm import NormedSpec
from raymtl.sharing import SoftSpec
from raymtl.tasks import regression
from tests.sharing.laws import moved

pytestmark = pytest.mark.usefixtures("float64")

TASKS = tuple(regression(name, 0.0, 1.0) for name in "abc")
NAMES = tuple(task.name for task in TASKS)
ENCODERS = {"mlp": (MLPSpec(hidden=(3, 2)), (2,)), "conv": (ConvSpec(channels=(4,)), (1, 6, 6))}
over_the_encoders = pytest.mark.parametrize("encoder, shape", ENCODERS.values(), ids=ENCODERS)


def build(encoder: Any, shape: tuple[int, ...], num_tasks: int = 3, strength: float = 0.3) -> Any:
    return SoftSpec(strength=strength).build(
        TASKS[:num_tasks], [encoder.build(shape) for _ in range(num_tasks)]
    )


@over_the_encoders
def test_the_penalty_sums_over_all_pairs(encoder: NormedSpec, shape: tuple[int, ...]) -> None:
    """sum_t |theta_t - mean|^2 = 1/K sum over pairs |theta_s - theta_t|^2, which needs no mean."""
    model = build(encoder, shape)
    params = moved(model, 1.0)
    trunks = [
        torch.cat(
            [
                params[f"encoders.{i}.{key}"].flatten()
                for key, _ in model.encoders[0].named_parameters()
            ]
        )
        for i in range(3)
    ]
    pairs = sum((trunks[i] - trunks[j]).square().sum() for i, j in ((0, 1), (0, 2), (1, 2)))
    torch.testing.assert_close(model.penalty(params), 0.3 * pairs / 3)


@over_the_encoders
def test_equal_trunks_and_a_single_one_cost_nothing(
    encoder: NormedSpec, shape: tuple[int, ...]
) -> None:
    model = build(encoder, shape)
    for other in model.encoders[1:]:
        other.load_state_dict(model.encoders[0].state_dict())
    assert model.penalty(dict(model.named_parameters())) < 1e-25
    alone = build(encoder, shape, 1)
    assert alone.penalty(moved(alone)) == 0


def test_each_trunk_sees_its_own_inputs_alone() -> None:
    model = build(*ENCODERS["mlp"])
    calls: list[tuple[int, int]] = []
    for i, encoder in enumerate(model.encoders):
        encoder.register_forward_hook(lambda _, inputs, __, i=i: calls.append((i, len(inputs[0]))))
    model({task: torch.randn(1 + i, 2) for i, task in enumerate(NAMES)})
    assert calls == [(0, 1), (1, 2), (2, 3)]


def test_a_strength_below_zero_is_refused() -> None:
    with pytest.raises(ValidationError, match="strength"):
        SoftSpec(strength=-1.0)
