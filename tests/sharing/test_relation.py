"""Multi-task relationship learning."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from raymtl.encoders import MLPSpec
from raymtl.encoders.base import Encoder
from raymtl.sharing import HardSpec, RelationSpec
from raymtl.tasks import classification, regression
from raymtl.types import Params, Task, UserError
from tests.conftest import experiment
from tests.sharing.laws import assert_predicts_as_hard_sharing

pytestmark = pytest.mark.usefixtures("float64")

TASKS = tuple(classification(name, 3) for name in "abcd")
MLP = MLPSpec(hidden=(5,))


def build(tasks: Sequence[Task] = TASKS, **numbers: Any) -> Any:
    return RelationSpec(**numbers).build(tasks, [MLP.build((6,))])


def weights_of(params: Params, tasks: Sequence[Task] = TASKS) -> Any:
    """W [d, K], stacked here by hand."""
    return torch.stack([params[f"heads.{task.name}.weight"].reshape(-1) for task in tasks], 1)


@pytest.mark.parametrize("num_tasks", [1, 2, 4])
def test_the_relation_is_definite_of_trace_one(num_tasks: int) -> None:
    model = build(TASKS[:num_tasks])
    for scale in (0.0, 1e-3, 1.0, 100.0):
        params = {name: scale * value for name, value in model.named_parameters()}
        omega = model.relation(params)
        assert omega.shape == (num_tasks, num_tasks) and not omega.requires_grad
        torch.testing.assert_close(omega, omega.T)
        torch.testing.assert_close(omega.trace(), torch.tensor(1.0))
        assert (torch.linalg.eigvalsh(omega) > 0).all()


def test_the_relation_is_the_papers_square_root() -> None:
    model = build(ridge=1e-12)
    params = dict(model.named_parameters())
    weights, omega = weights_of(params), model.relation(params)
    squared = weights.T @ weights
    torch.testing.assert_close(omega @ omega, squared / squared.trace() * (omega @ omega).trace())


def test_the_relation_beats_every_random_feasible_one() -> None:
    model = build(lambda_1=0.0, lambda_2=2.0, ridge=1e-10)
    params = dict(model.named_parameters())
    weights, best = weights_of(params), model.penalty(params)
    torch.testing.assert_close(
        best, (weights @ model.relation(params).inverse() @ weights.T).trace()
    )
    for _ in range(200):
        root = torch.randn(4, 4)
        other = root @ root.T
        # Small and large departures alike from the one that is claimed to be the best.
        mixed = torch.lerp(model.relation(params), other / other.trace(), torch.rand(()) ** 3)
        assert (weights @ mixed.inverse() @ weights.T).trace() >= best - 1e-9


@pytest.mark.parametrize("tasks", [TASKS, tuple(regression(name, 0.0, 1.0) for name in "abcdefgh")])
def test_the_gradient_is_half_the_squared_trace_norms(tasks: tuple[Task, ...]) -> None:
    """Also with more tasks than weights, where Omega has an inverse by the ridge alone."""
    model = build(tasks, lambda_1=0.3, lambda_2=0.7, ridge=1e-9)
    params = dict(model.named_parameters())
    weights = weights_of(params, tasks)
    reference = (
        0.3 / 2 * weights.square().sum() + 0.7 / 2 * torch.linalg.svdvals(weights).sum() ** 2
    )
    leaves = [params[f"heads.{task.name}.weight"] for task in tasks]
    own, expected = (
        torch.autograd.grad(f, leaves, retain_graph=True)
        for f in (model.penalty(params), reference)
    )
    for one, other in zip(own, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model.penalty(params), reference, rtol=1e-6, atol=1e-6)


def test_the_gradient_is_w_times_inverse_omega() -> None:
    """With Omega held fixed."""
    model = build(lambda_1=0.0, lambda_2=0.7, ridge=0.01)
    params = dict(model.named_parameters())
    leaves = [params[f"heads.{task.name}.weight"] for task in TASKS]
    gradient = torch.stack(
        [g.flatten() for g in torch.autograd.grad(model.penalty(params), leaves)], 1
    )
    torch.testing.assert_close(
        gradient, 0.7 * weights_of(params) @ model.relation(params).inverse()
    )


def test_the_penalty_leaves_biases_and_the_trunk_alone() -> None:
    model = build()
    params = dict(model.named_parameters())
    grads = torch.autograd.grad(model.penalty(params), list(params.values()), allow_unused=True)
    moved = {name for name, gradient in zip(params, grads, strict=True) if gradient is not None}
    assert moved == {f"heads.{task.name}.weight" for task in TASKS}


def test_it_predicts_as_hard_sharing_does() -> None:
    trunk = MLP.build((6,))
    model = RelationSpec().build(TASKS, [trunk])
    assert_predicts_as_hard_sharing(model, trunk, TASKS, (6,), exactly=True)
    assert model.shared == HardSpec().build(TASKS, [trunk]).shared


def test_opposed_toy_tasks_become_known_as_opposed() -> None:
    """The paper's y = 3x + 10, -3x - 5 and 1, here with four inputs that say nothing beside x.

    W holds the slopes; the offsets are biases, outside of it. That of the third task tends to zero.
    """
    tasks = tuple(regression(name, 0.0, 1.0) for name in ("up", "down", "flat"))
    model = RelationSpec(lambda_1=0.001, lambda_2=0.001).build(
        tasks, [Encoder([torch.nn.Identity()], (5,))]
    )
    model.heads["down"].load_state_dict(model.heads["up"].state_dict())
    params = dict(model.named_parameters())

    def correlation() -> float:
        omega = model.relation(params)
        return (omega[0, 1] / (omega[0, 0] * omega[1, 1]).sqrt()).item()

    assert correlation() > 0.999
    inputs = torch.randn(40, 5)
    x = inputs[:, :1]
    targets = {"up": 3 * x + 10, "down": -3 * x - 5, "flat": torch.ones_like(x)}
    optimizer = torch.optim.Adam(params.values(), lr=0.3)
    falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.001, 400)
    for _ in range(400):
        predictions = model(inputs)
        loss = sum((predictions[name] - target).square().mean() for name, target in targets.items())
        optimizer.zero_grad()
        (loss + model.penalty(params)).backward()
        optimizer.step()
        falling.step()
    assert correlation() < -0.999
    omega = model.relation(params)
    assert omega[2].abs().max() < 0.01
    torch.testing.assert_close(omega[0, 0], omega[1, 1], rtol=0.02, atol=0)


def test_heads_of_different_shapes_are_refused() -> None:
    """The error names two tasks and their shapes."""
    says = r"sharing\.name: relation .* got \[1, 8\] for 'sum' and \[10, 8\] for 'left'"
    with pytest.raises(UserError, match=says):
        experiment(sharing__name="relation")
    assert (
        experiment(sharing__name="relation", data__tasks=["left", "right"]).sharing.name
        == "relation"
    )


def test_the_gradient_keeps_its_digits_in_float32() -> None:
    """Where there are more tasks than weights."""
    tasks = tuple(regression(f"t{i}", 0.0, 1.0) for i in range(40))
    torch.set_default_dtype(torch.float32)
    model = build(tasks, lambda_1=0.0, lambda_2=1.0)
    found = []
    for dtype in (torch.float32, torch.float64):
        params = {
            name: value.detach().to(dtype).requires_grad_()
            for name, value in model.named_parameters()
        }
        heads = [params[f"heads.{task.name}.weight"] for task in tasks]
        found.append(
            torch.cat(
                [g.flatten() for g in torch.autograd.grad(model.penalty(params), heads)]
            ).double()
        )
    assert (found[0] - found[1]).norm() < 1e-4 * found[1].norm()
