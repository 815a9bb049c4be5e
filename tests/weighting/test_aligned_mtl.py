"""Aligned-MTL: the aligned gradients, and the polar factor of the Jacobian."""

import pytest
import torch

from raymtl.weighting import AlignedMTLSpec
from raymtl.weighting.aligned_mtl import Scale, aligned
from tests.weighting import ABCD, Rows

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize("scale", ["min", "median", "rmse"])
def test_aligned_gradients_are_orthogonal_and_of_one_length(scale: Scale) -> None:
    rows = torch.randn(4, 9) * torch.tensor([[1.0], [10.0], [0.1], [1.0]])
    sigma = torch.linalg.svdvals(rows)
    length = {"min": sigma[-1], "median": sigma[2], "rmse": sigma.square().mean().sqrt()}[scale]
    turned = torch.from_numpy(aligned((rows @ rows.T).numpy(), 1e-15, scale)) @ rows
    torch.testing.assert_close(turned @ turned.T, length**2 * torch.eye(4), rtol=1e-8, atol=1e-8)
    weights = AlignedMTLSpec(scale=scale).build(ABCD)(torch.ones(4), Rows(rows))
    torch.testing.assert_close(weights @ rows, turned.sum(0))


def test_it_sums_the_rows_of_the_polar_factor() -> None:
    """Of fewer coordinates than tasks too: there U V' of the reduced decomposition."""
    for width in (9, 3):
        rows = torch.randn(4, width)
        left, sigma, right = torch.linalg.svd(rows, full_matrices=False)
        joint = AlignedMTLSpec().build(ABCD)(torch.ones(4), Rows(rows)) @ rows
        torch.testing.assert_close(joint, sigma[-1] * (left @ right).sum(0), rtol=1e-8, atol=1e-8)


def test_a_task_whose_gradient_is_zero_weighs_0() -> None:
    rows = torch.randn(3, 4)
    weights = AlignedMTLSpec().build(ABCD)(
        torch.ones(4), Rows(torch.cat([torch.zeros(1, 4), rows]))
    )
    assert abs(weights[0]) < 1e-12
    torch.testing.assert_close(
        weights[1:], AlignedMTLSpec().build(ABCD[:3])(torch.ones(3), Rows(rows))
    )
