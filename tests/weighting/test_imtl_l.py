"""IMTL-L against TorchJD's and at its optimum."""

import pytest
import torch
from torchjd.scalarization import IMTLL

from raymtl.weighting import IMTLLSpec
from tests.weighting import ABC

pytestmark = pytest.mark.usefixtures("float64")


def test_total_and_both_gradients_equal_torchjds() -> None:
    module, oracle = IMTLLSpec().build(ABC), IMTLL(3)
    scales, losses = torch.randn(3), torch.rand(3).requires_grad_()
    with torch.no_grad():
        module.log_scale.copy_(scales)
        oracle.log_scale.copy_(scales)
    ours, theirs = module(losses), oracle(losses)
    torch.testing.assert_close(ours, theirs)
    for one, other in zip(
        torch.autograd.grad(ours, [losses, module.log_scale]),
        torch.autograd.grad(theirs, [losses, oracle.log_scale]),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_the_minimum_scales_every_loss_to_one() -> None:
    module, losses = IMTLLSpec().build(ABC), torch.tensor([0.3, 5.0, 40.0])
    with torch.no_grad():
        module.log_scale.copy_(-losses.log())
    torch.testing.assert_close(module() * losses, torch.ones(3))
    (gradient,) = torch.autograd.grad(module(losses), [module.log_scale])
    torch.testing.assert_close(gradient, torch.zeros(3), atol=1e-12, rtol=0)


def test_a_task_without_labels_has_no_gradient() -> None:
    module = IMTLLSpec().build(ABC)
    (gradient,) = torch.autograd.grad(
        module(torch.tensor([0.5, 3.0]), torch.tensor([2, 0])), [module.log_scale]
    )
    torch.testing.assert_close(gradient, torch.tensor([2.0, 0.0, -0.5]))
