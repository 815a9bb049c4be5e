"""MGDA against the closed form of two tasks and the simplex at random; its conditions are in test_torchjd.py."""

import pytest
import torch

from raymtl.weighting import MGDASpec
from tests.weighting import ABCD, Rows

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize("seed", range(20))
def test_two_tasks_follow_the_closed_form(seed: int) -> None:
    one, other = torch.randn(2, 3, generator=torch.Generator().manual_seed(seed)) + seed % 2
    share = ((other - one) @ other / (other - one).square().sum()).clamp(0, 1)
    weights = MGDASpec().build(ABCD[:2])(torch.ones(2), Rows(torch.stack([one, other])))
    torch.testing.assert_close(weights, 2 * torch.stack([share, 1 - share]))


def test_no_convex_combination_is_shorter() -> None:
    rows = torch.randn(4, 9)
    joint = MGDASpec().build(ABCD)(torch.ones(4), Rows(rows)) @ rows
    others = 4 * torch.rand(5000, 4).pow(3)
    others = 4 * others / others.sum(1, keepdim=True)
    assert ((others @ rows).norm(dim=1) > joint.norm()).all()


def test_a_zero_gradient_leaves_the_others_alone() -> None:
    """The other tasks are weighed as they are without it."""
    rows = torch.tensor([[1.0, 2.0], [0.0, 0.0], [2.0, -1.0]])
    weights = MGDASpec().build(ABCD[:3])(torch.ones(3), Rows(rows))
    torch.testing.assert_close(
        weights[[0, 2]], MGDASpec().build(ABCD[:2])(torch.ones(2), Rows(rows[[0, 2]]))
    )
    torch.testing.assert_close(weights[[0, 2]], torch.ones(2))  # orthogonal and equally long


@pytest.mark.parametrize("normalize", ["none", "l2", "loss", "loss+"])
def test_weights_are_those_of_the_normalized_gradients(normalize: str) -> None:
    losses, rows = torch.rand(4) + 0.1, torch.randn(4, 6)
    scale = {
        "none": torch.ones(4),
        "l2": rows.norm(dim=1),
        "loss": losses,
        "loss+": losses * rows.norm(dim=1),
    }[normalize]
    expected = MGDASpec().build(ABCD)(torch.ones(4), Rows(rows / scale[:, None]))
    torch.testing.assert_close(
        MGDASpec(normalize=normalize).build(ABCD)(losses, Rows(rows)), expected
    )


@pytest.mark.parametrize("normalize", ["l2", "loss", "loss+"])
def test_zeros_are_no_scale(normalize: str) -> None:
    rows = torch.tensor([[0.0, 0.0], [1.0, 2.0]])
    weights = MGDASpec(normalize=normalize).build(ABCD[:2])(torch.tensor([0.0, 1.0]), Rows(rows))
    torch.testing.assert_close(weights, torch.ones(2))
