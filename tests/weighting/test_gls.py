"""GLS against TorchJD's geometric mean and by its invariances."""

import pytest
import torch
from torchjd.scalarization import GeometricMean

from raymtl.weighting import GLSSpec
from tests.weighting import ABC

pytestmark = pytest.mark.usefixtures("float64")


def weights_of(losses: torch.Tensor) -> torch.Tensor:
    losses = losses.clone().requires_grad_()
    return torch.autograd.grad(GLSSpec().build(ABC)(losses), losses)[0]


def test_the_total_is_k_times_the_geometric_mean() -> None:
    losses = torch.rand(3) + 0.1
    torch.testing.assert_close(GLSSpec().build(ABC)(losses), 3 * GeometricMean()(losses))
    torch.testing.assert_close(GLSSpec().build(ABC)(losses), 3 * losses.prod() ** (1 / 3))


def test_weights_have_the_product_one() -> None:
    """They are 1 for equal losses."""
    torch.testing.assert_close(weights_of(torch.rand(3) + 0.1).prod(), torch.tensor(1.0))
    torch.testing.assert_close(weights_of(torch.full((3,), 7.0)), torch.ones(3))


def test_every_task_has_the_same_share() -> None:
    losses = torch.tensor([1e-3, 2.0, 5e4])
    shares = weights_of(losses) * losses
    torch.testing.assert_close(shares, shares.mean().expand(3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_zero_loss_weighs_nothing(dtype: torch.dtype) -> None:
    """It takes weight from the others."""
    weights = weights_of(torch.tensor([0.0, 1.0, 1.0], dtype=dtype))
    torch.testing.assert_close(
        weights, torch.tensor([0.0, 1e-8 ** (1 / 3), 1e-8 ** (1 / 3)], dtype=dtype)
    )
    assert weights_of(torch.zeros(3, dtype=dtype)).tolist() == [0, 0, 0]
