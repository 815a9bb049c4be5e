"""IMTL-G: equal projections, and the paper's closed form of two tasks."""

import pytest
import torch

from raymtl.weighting import IMTLGSpec
from tests.weighting import Rows, regressions

TASKS = regressions("abcde")
pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize("seed", range(10))
def test_projections_on_all_gradients_are_equal_and_positive(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(5, 7, generator=generator) * 10 ** torch.rand(5, 1, generator=generator)
    weights = IMTLGSpec().build(TASKS)(torch.ones(5), Rows(rows))
    projections = rows @ (weights @ rows) / rows.norm(dim=1)
    assert projections[0] > 0
    torch.testing.assert_close(projections, projections[:1].expand(5))
    torch.testing.assert_close(weights.abs().sum(), torch.tensor(5.0))


def test_two_gradients_weigh_as_one_over_their_lengths() -> None:
    weights = IMTLGSpec().build(TASKS[:2])(
        torch.ones(2), Rows(torch.tensor([[3.0, 0.0], [-0.6, 0.8]]))
    )
    torch.testing.assert_close(weights, torch.tensor([0.5, 1.5]))


def test_losses_fall_at_negative_sums_of_weights() -> None:
    """The outer two, long, are far from each other and the bisector; the short one between them must be held back."""
    rows = torch.tensor([[100.0, 0.0, 1.0], [0.0, 100.0, 1.0], [0.01, 0.01, 0.001]])
    weights = IMTLGSpec().build(TASKS[:3])(torch.ones(3), Rows(rows))
    assert weights.sum() < 0
    assert (rows @ (weights @ rows) > 0).all()


def test_a_zero_gradient_leaves_the_others_alone() -> None:
    """The other tasks are weighed as if they were alone."""
    rows = torch.randn(3, 4)
    weights = IMTLGSpec().build(TASKS[:4])(
        torch.ones(4), Rows(torch.cat([torch.zeros(1, 4), rows]))
    )
    torch.testing.assert_close(weights[1:], IMTLGSpec().build(TASKS[:3])(torch.ones(3), Rows(rows)))
