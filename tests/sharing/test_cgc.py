"""Customized gate control."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from raymtl.encoders import MLPSpec
from raymtl.sharing import CGCSpec
from raymtl.tasks import classification, regression
from raymtl.types import Task

pytestmark = pytest.mark.usefixtures("float64")

TASKS = (classification("a", 4), regression("b", 0.0, 1.0))
SHAPE = (6,)
SPEC = CGCSpec(num_shared_experts=2, num_task_experts=3)


def build(spec: CGCSpec = SPEC, tasks: Sequence[Task] = TASKS) -> Any:
    encoders = [MLPSpec(hidden=(5, 4)).build(SHAPE) for _ in range(spec.num_encoders(len(tasks)))]
    return spec.build(tasks, encoders)


def test_tasks_have_private_and_shared_experts() -> None:
    model = build()
    assert SPEC.num_encoders(2) == 2 + 2 * 3
    assert len(model.shared_experts) == 2
    assert [len(model.task_experts[task]) for task in ("a", "b")] == [3, 3]
    everyone = [*model.shared_experts, *model.task_experts["a"], *model.task_experts["b"]]
    assert len({id(expert) for expert in everyone}) == 8


def test_features_equal_the_papers_loop() -> None:
    model, inputs = build(), torch.randn(4, *SHAPE)
    features = model.features(inputs, ("a", "b"))
    for task in ("a", "b"):
        experts = [*model.shared_experts, *model.task_experts[task]]
        for n, x in enumerate(inputs):
            scores = (model.gates[task].linear.weight @ x).exp()
            expected = sum(
                s / scores.sum() * f(x[None])[0] for s, f in zip(scores, experts, strict=True)
            )
            torch.testing.assert_close(features[task][n], expected)


def test_gates_are_in_the_simplex() -> None:
    for gate in build().gates.values():
        weights = gate.weights(10 * torch.randn(7, *SHAPE))
        assert weights.shape == (7, 5) and (weights >= 0).all()
        torch.testing.assert_close(weights.sum(1), torch.ones(7))


def test_a_loss_leaves_other_tasks_experts_alone() -> None:
    model = build()
    grads = torch.autograd.grad(
        model(torch.randn(3, *SHAPE))["a"].sum(),
        list(model.task_experts["b"].parameters()),
        allow_unused=True,
    )
    assert all(gradient is None for gradient in grads)


@pytest.mark.parametrize("field", ["num_shared_experts", "num_task_experts"])
def test_no_expert_at_all_is_refused(field: str) -> None:
    with pytest.raises(ValidationError, match=field):
        CGCSpec(**{field: 0})
