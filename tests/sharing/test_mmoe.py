"""Multi-gate mixture of experts."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from raymtl.encoders import ConvSpec, MLPSpec
from raymtl.encoders.norm import NormedSpec
from raymtl.sharing import MMoESpec
from raymtl.tasks import classification, regression
from tests.sharing.laws import assert_predicts_as_hard_sharing

pytestmark = pytest.mark.usefixtures("float64")

TASKS = (classification("a", 4), regression("b", 0.0, 1.0))
SHAPE = (1, 6, 6)
MLP = MLPSpec(hidden=(5, 4))


def build(num_experts: int, encoder: Any = MLP) -> Any:
    return MMoESpec(num_experts=num_experts).build(
        TASKS, [encoder.build(SHAPE) for _ in range(num_experts)]
    )


def test_gates_are_in_the_simplex() -> None:
    model = build(3)
    for gate in model.gates.values():
        weights = gate.weights(10 * torch.randn(7, *SHAPE))
        assert weights.shape == (7, 3) and (weights >= 0).all()
        torch.testing.assert_close(weights.sum(1), torch.ones(7))


@pytest.mark.parametrize("encoder", [MLP, ConvSpec(channels=(4,))])
def test_one_expert_is_hard_sharing(encoder: NormedSpec) -> None:
    model = build(1, encoder)
    assert_predicts_as_hard_sharing(model, model.experts[0], TASKS, SHAPE)


def test_features_equal_the_papers_loop() -> None:
    model, inputs = build(3), torch.randn(4, *SHAPE)
    features = model.features(inputs, ("a", "b"))
    for task in ("a", "b"):
        for n, x in enumerate(inputs):
            scores = (model.gates[task].linear.weight @ x.flatten()).exp()
            outputs = [expert(x[None])[0] for expert in model.experts]
            expected = sum(s / scores.sum() * f for s, f in zip(scores, outputs, strict=True))
            torch.testing.assert_close(features[task][n], expected)


def test_permuting_the_experts_changes_nothing() -> None:
    model, inputs = build(3), torch.randn(4, *SHAPE)
    before = model(inputs)
    model.experts = type(model.experts)([model.experts[i] for i in (2, 0, 1)])
    for gate in model.gates.values():
        gate.linear.weight = torch.nn.Parameter(gate.linear.weight[[2, 0, 1]])
    for task, prediction in model(inputs).items():
        torch.testing.assert_close(prediction, before[task])


def test_no_expert_at_all_is_refused() -> None:
    with pytest.raises(ValidationError, match="num_experts"):
        MMoESpec(num_experts=0)
