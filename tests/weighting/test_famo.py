"""FAMO against TorchJD's over a training, and what its weights strive for."""

import pytest
import torch
from torchjd.scalarization import FAMO

from raymtl.weighting import FAMOSpec
from tests.weighting import ABC

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_weights_are_three_times_torchjds_over_a_training(decay: float) -> None:
    bounds = {"a": 0.0, "b": -0.5, "c": 0.05}
    module = FAMOSpec(lr=0.2, weight_decay=decay, lower_bounds=bounds).build(ABC)
    oracle = FAMO(3, min_losses=torch.tensor(list(bounds.values())), lr=0.2, weight_decay=decay)
    for _ in range(30):
        losses, after = (torch.rand(3) + 0.1).requires_grad_(), torch.rand(3) + 0.1
        (expected,) = torch.autograd.grad(oracle(losses), losses)
        weights = module(losses)
        torch.testing.assert_close(weights, 3 * expected, rtol=1e-6, atol=0)
        torch.testing.assert_close(weights.sum(), torch.tensor(3.0))
        module.update_after_step(losses, after, torch.arange(3))
        oracle.update(after)
    assert not torch.allclose(module(), torch.ones(3), rtol=0.05)


def test_weights_are_the_papers_gradient_times_k() -> None:
    """The gradient of the paper's total, times the number of tasks."""
    module = FAMOSpec().build(ABC)
    module.logits = torch.randn(3)
    losses = (torch.rand(3) + 0.1).requires_grad_()
    z = module.logits.exp() / module.logits.exp().sum()
    (expected,) = torch.autograd.grad(
        (z * losses.log()).sum() / (z / losses.detach()).sum(), losses
    )
    torch.testing.assert_close(module(losses), 3 * expected)


def test_the_slowest_task_gains() -> None:
    """Equal relative drops move nothing."""
    module = FAMOSpec(weight_decay=0.0).build(ABC)
    before = torch.tensor([1.0, 20.0, 0.4])
    module.update_after_step(before, before / 2, torch.arange(3))
    torch.testing.assert_close(
        module(), torch.ones(3), rtol=0, atol=1e-6
    )  # Adam magnifies what rounding leaves
    module = FAMOSpec(weight_decay=0.0).build(ABC)
    for _ in range(5):
        module.update_after_step(before, before * torch.tensor([0.5, 0.9, 0.6]), torch.arange(3))
    assert module().argmax() == 1


def test_loss_units_leave_the_direction_alone() -> None:
    """The direction of the joint gradient does not depend on the unit of a loss."""
    here, there = FAMOSpec().build(ABC), FAMOSpec().build(ABC)
    units = torch.tensor([1.0, 1e3, 1e-2])
    for _ in range(5):
        losses, after, rows = torch.rand(3) + 0.1, torch.rand(3) + 0.1, torch.randn(3, 6)
        one, other = here(losses) @ rows, there(units * losses) @ (units[:, None] * rows)
        torch.testing.assert_close(
            torch.nn.functional.cosine_similarity(one, other, dim=0), torch.tensor(1.0)
        )
        here.update_after_step(losses, after, torch.arange(3))
        there.update_after_step(units * losses, units * after, torch.arange(3))


def test_state_is_a_few_numbers_a_task() -> None:
    module = FAMOSpec().build(ABC)
    module(torch.rand(3))
    module.update_after_step(torch.rand(3), torch.rand(3), torch.arange(3))
    assert sum(buffer.numel() for buffer in module.buffers()) == 5 * 3
    assert FAMOSpec.needs_post_step_losses and not FAMOSpec.needs_gradients


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_loss_at_its_bound_gives_no_nan(dtype: torch.dtype) -> None:
    module = FAMOSpec().build(ABC)
    for _ in range(3):
        losses = torch.tensor([0.0, 1.0, 2.0], dtype=dtype)
        assert module(losses).isfinite().all()
        module.update_after_step(losses, losses.flip(0), torch.arange(3))
    assert module().isfinite().all()


def test_a_bound_of_an_unknown_task_is_refused() -> None:
    assert FAMOSpec(lower_bounds={"a": 1.0}).check("abc") is None
    key, sentence = FAMOSpec(lower_bounds={"d": 1.0}).check(["a", "b"]) or ("", "")
    assert key == "lower_bounds.d"
    assert "['a', 'b']" in sentence
