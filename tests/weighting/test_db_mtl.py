"""DB-MTL against the paper's loop over tasks."""

import pytest
import torch

from raymtl.weighting import DBMTLSpec
from tests.weighting import ABC, Rows

pytestmark = pytest.mark.usefixtures("float64")


def test_it_equals_the_papers_loop_with_missing_labels() -> None:
    module = DBMTLSpec(beta=0.7).build(ABC)
    averages = [torch.zeros(5) for _ in ABC]
    for step in range(12):
        theta = torch.randn(5)
        tasks = torch.tensor([[0, 1, 2], [2, 0], [1]][step % 3])
        targets = torch.randn(3, 5)
        rows, losses = [], []
        for task in tasks.tolist():
            point = theta.clone().requires_grad_()
            loss = (point - targets[task]).square().sum() * 10.0**task
            rows.append(torch.autograd.grad(loss, point, retain_graph=True)[0])
            losses.append(loss.detach())
            (of_log,) = torch.autograd.grad(loss.log(), point)
            averages[task] = 0.7 * averages[task] + 0.3 * of_log
        largest = max(torch.linalg.norm(averages[task]) for task in tasks.tolist())
        expected = sum(
            largest / torch.linalg.norm(averages[task]) * averages[task] for task in tasks.tolist()
        )
        jacobian = Rows(torch.stack(rows))
        weights = module(torch.stack(losses), jacobian, tasks)
        torch.testing.assert_close(weights @ jacobian.matrix, expected)
        assert (weights >= 1).all()


def test_all_weighted_gradients_have_the_largest_norm() -> None:
    jacobian = Rows(torch.randn(3, 7))
    weights = DBMTLSpec().build(ABC)(torch.rand(3) + 0.1, jacobian)
    norms = jacobian.matrix.norm(dim=1)
    torch.testing.assert_close(weights * norms, norms.max().expand(3))


def test_the_unit_of_a_loss_has_no_say() -> None:
    here, there = DBMTLSpec().build(ABC), DBMTLSpec().build(ABC)
    units = torch.tensor([1.0, 1e3, 1e-2])
    for _ in range(4):
        losses, rows = torch.rand(3) + 0.1, torch.randn(3, 4)
        one, other = Rows(rows), Rows(units[:, None] * rows)
        torch.testing.assert_close(
            there(units * losses, other) @ other.matrix, here(losses, one) @ one.matrix
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_losses_and_gradients_give_no_nan(dtype: torch.dtype) -> None:
    jacobian = Rows(torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]], dtype=dtype))
    weights = DBMTLSpec(beta=0.0).build(ABC)(torch.tensor([0.0, 1.0, 1.0], dtype=dtype), jacobian)
    torch.testing.assert_close(weights, torch.tensor([1.0, 1.0, 5.0], dtype=dtype))
    torch.testing.assert_close(weights @ jacobian.matrix, torch.tensor([3.0, 9.0], dtype=dtype))
