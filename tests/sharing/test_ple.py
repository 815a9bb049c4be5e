"""Progressive layered extraction."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from raymtl.encoders import ConvSpec, LeNetSpec, MLPSpec
from raymtl.encoders.norm import NormedSpec
from raymtl.sharing import CGCSpec, PLESpec
from raymtl.sharing.ple import Level
from raymtl.tasks import classification, regression
from raymtl.types import UserError
from tests.conftest import experiment
from tests.narrowing import checked

pytestmark = pytest.mark.usefixtures("float64")

TASKS = (classification("a", 4), regression("b", 0.0, 1.0))


def build(spec: Any, encoder: Any, shape: tuple[int, ...]) -> Any:
    return spec.build(TASKS, [encoder.build(shape) for _ in range(spec.num_encoders(len(TASKS)))])


@pytest.mark.parametrize(
    "encoder, shape",
    [(MLPSpec(hidden=(5, 4)), (6,)), (ConvSpec(channels=(4, 8)), (1, 6, 6))],
    ids=["mlp", "conv"],
)
def test_one_level_is_customized_gate_control(encoder: NormedSpec, shape: tuple[int, ...]) -> None:
    numbers = {"num_shared_experts": 2, "num_task_experts": 2}
    ple, cgc = (
        build(PLESpec(num_levels=1, **numbers), encoder, shape),
        build(CGCSpec(**numbers), encoder, shape),
    )
    # A whole encoder is an expert there, a row of stages here: the same parameters under other names.
    ple.load_state_dict(
        {
            key if key.startswith("heads.") else "levels.0." + key.replace("stages.", ""): value
            for key, value in cgc.state_dict().items()
        }
    )
    inputs = torch.randn(3, *shape)
    for task, prediction in cgc(inputs).items():
        torch.testing.assert_close(ple(inputs)[task], prediction)


def softmax_sum(gate: Any, x: Tensor, outputs: Any) -> Any:
    scores = (gate.linear.weight @ x.flatten()).exp()
    return sum(s / scores.sum() * f for s, f in zip(scores, outputs, strict=True))


def test_features_equal_the_papers_loop() -> None:
    """On pictures and over three levels, whose groups of stages have different shapes."""
    shape = (1, 16, 16)
    encoder = LeNetSpec(maps=(2, 3), hidden=(6, 5))
    model, inputs = build(PLESpec(num_levels=3), encoder, shape), torch.randn(2, *shape)
    features = model.features(inputs, ("a", "b"))
    for n, x in enumerate(inputs):
        branches = {"shared": x, "a": x, "b": x}
        for level in model.levels:
            outputs = {
                "shared": [expert(branches["shared"][None])[0] for expert in level.shared_experts]
            }
            for task in ("a", "b"):
                outputs[task] = [
                    expert(branches[task][None])[0] for expert in level.task_experts[task]
                ]
            mixed = {
                task: softmax_sum(
                    level.gates[task], branches[task], outputs["shared"] + outputs[task]
                )
                for task in ("a", "b")
            }
            if level is not model.levels[-1]:
                everyone = outputs["shared"] + outputs["a"] + outputs["b"]
                mixed["shared"] = softmax_sum(level.shared_gate, branches["shared"], everyone)
            branches = mixed
        for task in ("a", "b"):
            torch.testing.assert_close(features[task][n], branches[task])


@pytest.mark.parametrize("num_levels", [1, 2, 3, 4])
def test_levels_hold_every_stage_in_order(num_levels: int) -> None:
    encoder = MLPSpec(hidden=(7, 6, 5, 4))
    encoders = [encoder.build((8,)) for _ in range(3)]
    model = PLESpec(num_levels=num_levels).build(TASKS, encoders)
    shared_experts = [
        checked(checked(level, Level).shared_experts[0], nn.Sequential) for level in model.levels
    ]
    walked = [stage for stages in shared_experts for stage in stages]
    assert walked == list(encoders[0].stages)
    assert all(len(stages) > 0 for stages in shared_experts)


@pytest.mark.parametrize("num_levels", [1, 2, 3, 4])
def test_shared_parameters_grow_with_the_levels(num_levels: int) -> None:
    encoder = MLPSpec(hidden=(7, 6, 5, 4))
    model = build(PLESpec(num_levels=num_levels), encoder, (8,))
    predictions, named = model(torch.randn(3, 8)), dict(model.named_parameters())
    reached = []
    for task in ("a", "b"):
        grads = torch.autograd.grad(
            predictions[task].sum(), tuple(named.values()), allow_unused=True, retain_graph=True
        )
        reached.append(
            {name for name, gradient in zip(named, grads, strict=True) if gradient is not None}
        )
    assert reached[0] & reached[1] == model.shared
    assert reached[0] | reached[1] == set(named)


def test_more_levels_than_stages_are_refused_by_name() -> None:
    with pytest.raises(
        UserError, match=r"sharing\.num_levels: expected at most the 2 stages of the encoder, got 3"
    ):
        experiment(sharing__name="ple", sharing__num_levels=3)


@pytest.mark.parametrize("field", ["num_levels", "num_shared_experts", "num_task_experts"])
def test_none_at_all_is_refused(field: str) -> None:
    with pytest.raises(ValidationError, match=field):
        PLESpec(**{field: 0})
