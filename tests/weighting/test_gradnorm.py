"""GradNorm against the paper's sum differentiated by autograd, and by its fixed points."""

import pytest
import torch

from raymtl.weighting import GradNormSpec
from tests.weighting import ABC, Rows

pytestmark = pytest.mark.usefixtures("float64")


def test_log_weights_descend_the_papers_sum() -> None:
    module = GradNormSpec(asymmetry=1.5, lr=0.1).build(ABC)
    log_weights, initial = torch.zeros(3), None
    for _ in range(12):
        losses, rows = torch.rand(3) + 0.1, torch.randn(3, 5) * torch.tensor([[0.1], [1.0], [3.0]])
        initial = losses if initial is None else initial
        weights = module(losses, Rows(rows))
        torch.testing.assert_close(weights, log_weights.exp())
        variable = log_weights.clone().requires_grad_()
        norms = torch.stack(
            [torch.linalg.norm(w * row) for w, row in zip(variable.exp(), rows, strict=True)]
        )
        mean = norms.mean().detach()
        rates = (losses / initial) / (losses / initial).mean()
        total = sum((norms[t] - mean * rates[t] ** 1.5).abs() for t in range(3))
        (slope,) = torch.autograd.grad(total / mean, variable)
        moved = (log_weights - 0.1 * slope).exp()
        log_weights = (3 * moved / moved.sum()).log()
    torch.testing.assert_close(module(), log_weights.exp())


def test_equal_norms_and_rates_move_no_weight() -> None:
    module = GradNormSpec(lr=0.5).build(ABC)
    rows = torch.tensor([[2.0, 0.0], [0.0, 2.0], [0.0, -2.0]])
    for factor in (1.0, 0.5, 0.25):
        torch.testing.assert_close(
            module(factor * torch.tensor([1.0, 8.0, 64.0]), Rows(rows)), torch.ones(3)
        )


def test_at_equal_rates_the_weighted_norms_become_equal() -> None:
    module = GradNormSpec(lr=0.01).build(ABC)
    norms = torch.tensor([1.0, 4.0, 0.5])
    for _ in range(600):
        weights = module(torch.ones(3), Rows(norms.diag()))
    expected = 3 * (1 / norms) / (1 / norms).sum()
    torch.testing.assert_close(
        weights, expected, rtol=0.03, atol=0
    )  # the sign makes steps of lr around it


def test_the_slow_task_gets_the_larger_gradient() -> None:
    """Rates r give weights in the ratio r^alpha."""
    module = GradNormSpec(lr=0.002, asymmetry=1.5).build(ABC[:2])
    module(torch.tensor([1.0, 1.0]), Rows(torch.eye(2)))
    for _ in range(1500):
        weights = module(torch.tensor([0.6, 0.4]), Rows(torch.eye(2)))
    pull = torch.tensor([1.2, 0.8]) ** 1.5
    torch.testing.assert_close(weights, 2 * pull / pull.sum(), rtol=0.03, atol=0)


def test_the_unit_of_all_losses_has_no_say() -> None:
    here, there = GradNormSpec(lr=0.1).build(ABC), GradNormSpec(lr=0.1).build(ABC)
    for _ in range(6):
        losses, rows = torch.rand(3), torch.randn(3, 4)
        torch.testing.assert_close(there(1e4 * losses, Rows(1e4 * rows)), here(losses, Rows(rows)))


def test_tasks_of_a_step_share_what_they_had() -> None:
    module = GradNormSpec(lr=0.3).build(ABC)
    for _ in range(4):
        module(torch.rand(3) + 0.1, Rows(torch.randn(3, 4)))
    before = module()
    weights = module(torch.rand(2), Rows(torch.randn(2, 4)), torch.tensor([0, 2]))
    torch.testing.assert_close(weights, 2 * before[[0, 2]] / before[[0, 2]].sum())
    assert module()[1] == before[1]
    assert not torch.allclose(module()[0], before[0])
    torch.testing.assert_close(module().sum(), torch.tensor(3.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_losses_and_gradients_of_zero_give_no_nan(dtype: torch.dtype) -> None:
    module = GradNormSpec().build(ABC)
    for losses in ([0.0, 0.0, 0.0], [0.0, 1.0, 2.0], [0.0, 0.0, 0.0], [3.0, 0.0, 1.0]):
        module(torch.tensor(losses, dtype=dtype), Rows(torch.zeros(3, 4, dtype=dtype)))
        weights = module(torch.tensor(losses, dtype=dtype), Rows(torch.randn(3, 4, dtype=dtype)))
        assert weights.isfinite().all() and (weights > 0).all()
    assert (module() > 0).all()
