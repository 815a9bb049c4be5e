"""STCH against TorchJD's smooth maximum of the log losses, and its limits."""

import pytest
import torch
from pydantic import ValidationError
from torchjd.scalarization import STCH

from raymtl.weighting import STCHSpec
from tests.weighting import ABC

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize("mu", [0.1, 0.5, 1.0])
def test_weights_are_torchjds_scaled_gradient(mu: float) -> None:
    """Scaled to sum to the number of tasks."""
    module, oracle = STCHSpec(mu=mu, warmup=4).build(ABC), STCH(mu, weights=torch.ones(3))
    first = torch.rand(4, 3) + 0.1
    for losses in first:
        module(losses)
    for _ in range(5):
        losses = (torch.rand(3) + 0.1).requires_grad_()
        smooth_maximum = oracle((losses / first.mean(0)).log())
        (slope,) = torch.autograd.grad(smooth_maximum, losses)
        torch.testing.assert_close(module(losses), 3 * slope / slope.sum())


def test_equal_losses_weigh_1() -> None:
    module = STCHSpec(mu=0.2, warmup=3).build(ABC)
    for loss in (1.0, 4.0, 2.0, 0.5, 0.1):
        torch.testing.assert_close(module(torch.full((3,), loss)), torch.ones(3))


def test_smaller_mu_favours_the_worst_task() -> None:
    leads = []
    for mu in (1.0, 0.5, 0.1, 0.01):
        module = STCHSpec(mu=mu, warmup=1).build(ABC)
        module(torch.ones(3))
        leads.append(float(module(torch.tensor([0.9, 0.3, 0.5]))[0]))
    assert leads[0] == pytest.approx(1)
    assert leads == sorted(leads)
    assert leads[-1] == pytest.approx(3, abs=1e-10)


def test_loss_units_leave_the_direction_alone() -> None:
    here, there = STCHSpec(warmup=2).build(ABC), STCHSpec(warmup=2).build(ABC)
    units = torch.tensor([1.0, 1e3, 1e-2])
    for _ in range(5):
        losses, rows = torch.rand(3) + 0.1, torch.randn(3, 6)
        one, other = here(losses) @ rows, there(units * losses) @ (units[:, None] * rows)
        torch.testing.assert_close(
            torch.nn.functional.cosine_similarity(one, other, dim=0), torch.tensor(1.0)
        )


def test_a_late_task_has_its_own_reference() -> None:
    """A loss of zero gives no nan."""
    module = STCHSpec(mu=0.5, warmup=2).build(ABC)
    for _ in range(3):
        module(torch.tensor([1.0, 1.0]), torch.tensor([0, 1]))
    module(torch.tensor([8.0]), torch.tensor([2]))
    torch.testing.assert_close(
        module(torch.full((3,), 4.0))[2], 3 * torch.tensor(4.0 / 36 / (4 + 4 + 4 / 36))
    )
    assert module(torch.zeros(3)).isfinite().all()


def test_a_mu_above_1_is_refused() -> None:
    with pytest.raises(ValidationError, match="less than or equal to 1"):
        STCHSpec(mu=1.5)
