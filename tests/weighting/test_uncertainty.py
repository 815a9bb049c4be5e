"""Uncertainty weighting: its optimum in closed form."""

import pytest
import torch

from raymtl.tasks import classification, regression
from raymtl.weighting import UncertaintySpec

TASKS = [classification("a", 4), regression("b", 0.0, 1.0), classification("c", 3)]
pytestmark = pytest.mark.usefixtures("float64")


def test_the_minimum_has_the_loss_as_variance() -> None:
    """Regression: d/ds (e^-s L / 2 + s / 2) = 0 at s = log L; classification: at s = log 2 L."""
    module = UncertaintySpec().build(TASKS[:2])
    losses = torch.tensor([0.3, 5.0])
    with torch.no_grad():
        module.log_variance.copy_(torch.tensor([2 * 0.3, 5.0]).log())
    (gradient,) = torch.autograd.grad(module(losses), [module.log_variance])
    torch.testing.assert_close(gradient, torch.zeros(2), atol=1e-12, rtol=0)


def test_unlabelled_tasks_are_left_out_of_the_total() -> None:
    module = UncertaintySpec().build(TASKS)
    (gradient,) = torch.autograd.grad(
        module(torch.tensor([0.3, 5.0]), torch.tensor([0, 2])), module.log_variance
    )
    assert gradient[1] == 0 and (gradient != 0).sum() == 2
