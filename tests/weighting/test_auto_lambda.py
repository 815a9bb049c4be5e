"""Auto-Lambda: the hypergradient against finite differences of the paper's objective, and what lambda learns."""

import pytest
import torch
from torch import Tensor

from raymtl.weighting import AutoLambdaSpec
from raymtl.weighting.auto_lambda import hypergradient
from tests.weighting import ABC, Rows

pytestmark = pytest.mark.usefixtures("float64")


class Quadratics:
    """L_t = 1/2 (w - a_t)' A_t (w - a_t) for three tasks; its own a and A on every batch."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        roots = torch.randn(3, 4, 4, generator=generator)
        self.curvatures, self.centres = roots @ roots.mT, torch.randn(3, 4, generator=generator)

    def losses(self, w: Tensor) -> Tensor:
        away = w - self.centres
        return torch.einsum("ti,tij,tj->t", away, self.curvatures, away) / 2

    def rows(self, w: Tensor) -> Tensor:
        return torch.einsum("tij,tj->ti", self.curvatures, w - self.centres)


@pytest.mark.parametrize("primary", [(0, 1, 2), (1,), (0, 2)])
def test_the_hypergradient_is_the_papers(
    primary: tuple[int, ...],
) -> None:
    """Central differences in lambda of the validation loss after a step; exact on a quadratic, up to rounding."""
    train, validation, alpha = Quadratics(0), Quadratics(1), 0.05
    theta, weights = torch.randn(4), torch.rand(3) + 0.5

    def objective(lambdas: Tensor) -> Tensor:
        moved = theta - alpha * lambdas @ train.rows(theta)
        return validation.losses(moved)[list(primary)].sum()

    steps = 0.1 * torch.eye(3)
    expected = torch.stack(
        [(objective(weights + step) - objective(weights - step)) / 0.2 for step in steps]
    )
    moved = theta - alpha * weights @ train.rows(theta)
    now = validation.rows(moved)[list(primary)].sum(0)
    torch.testing.assert_close(
        alpha * hypergradient(now, train.rows(theta)), expected, rtol=1e-10, atol=1e-10
    )


def test_log_lambda_descends_the_hypergradient_by_adam() -> None:
    """A training by SGD, in which autograd differentiates each step's losses through the step before."""
    module, alpha, theta = (
        AutoLambdaSpec(lr=0.05, primary=("a", "c")).build(ABC),
        0.02,
        torch.randn(4),
    )
    log_lambda = torch.nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.Adam(
        [log_lambda], lr=0.05, eps=1e-8 * alpha
    )  # alpha times the gradient, alpha times eps
    origin = None
    for step in range(15):
        batch = Quadratics(step)
        if origin is not None:
            before = Quadratics(step - 1)
            previous = log_lambda.detach().exp().requires_grad_()
            reached = origin - alpha * previous @ before.rows(origin)
            torch.testing.assert_close(reached.detach(), theta)
            (slope,) = torch.autograd.grad(batch.losses(reached)[[0, 2]].sum(), previous)
            log_lambda.grad = slope * previous.detach()
        else:
            log_lambda.grad = torch.zeros(3)
        optimizer.step()
        rows = batch.rows(theta)
        weights = module(batch.losses(theta), Rows(rows))
        torch.testing.assert_close(weights, log_lambda.detach().exp())
        origin, theta = theta, theta - alpha * weights @ rows
    assert not torch.allclose(weights, torch.ones(3), rtol=0.05)


def test_tasks_that_help_the_primary_one_gain() -> None:
    """A task that harms it loses."""
    module = AutoLambdaSpec(lr=0.05, primary=("a",)).build(ABC)
    rows = torch.tensor([[1.0, 0.0], [0.5, 3.0], [-1.0, 3.0]])
    for _ in range(100):
        weights = module(torch.ones(3), Rows(rows))
    assert weights[0] > 1 and weights[1] > 1
    assert 0 < weights[2] < 0.1
    torch.testing.assert_close(module(), 3 * weights / weights.sum())


def test_the_first_step_moves_nothing() -> None:
    module, rows = AutoLambdaSpec().build(ABC), torch.randn(3, 4)
    jacobian = Rows(rows.clone())
    assert module(torch.rand(3), jacobian).tolist() == [1, 1, 1]
    torch.testing.assert_close(jacobian.matrix, rows, rtol=0, atol=0)


def test_an_absent_task_keeps_its_last_gradient() -> None:
    """It is judged by the last step that had its labels."""
    module = AutoLambdaSpec(lr=0.1).build(ABC[:2])
    module(torch.ones(1), Rows(torch.tensor([[1.0, 0.0]])), torch.tensor([0]))
    module(torch.ones(1), Rows(torch.tensor([[-1.0, 0.0]])), torch.tensor([1]))
    module(torch.ones(1), Rows(torch.tensor([[2.0, 0.0]])), torch.tensor([0]))
    assert module.log_lambda[0] > 0 and module.log_lambda[1] == 0


def test_an_unknown_primary_task_is_refused() -> None:
    assert AutoLambdaSpec(primary=("b",)).check(["a", "b"]) is None
    key, sentence = AutoLambdaSpec(primary=("a", "d")).check(["a", "b"]) or ("", "")
    assert key == "primary"
    assert "['a', 'b']" in sentence and "'d'" in sentence
