"""Nash-MTL: the paper's equation, closed forms, and the bargaining solution among random directions."""

import pytest
import torch

from raymtl.weighting import NashMTLSpec
from tests.weighting import Rows, regressions, weigh

TASKS = regressions(map(str, range(40)))
pytestmark = pytest.mark.usefixtures("float64")


def nash(rows: torch.Tensor) -> torch.Tensor:
    return weigh(NashMTLSpec().build(TASKS[: len(rows)]), torch.ones(len(rows)), Rows(rows))


@pytest.mark.parametrize("size", [1, 2, 5, 40])
def test_every_weight_is_one_over_its_gain(
    size: int,
) -> None:
    """The joint gradient has the length sqrt(K)."""
    rows = torch.randn(size, size + 2) * 10 ** (2 * torch.rand(size, 1))
    weights = nash(rows)
    assert (weights > 0).all()
    torch.testing.assert_close(
        weights * (rows @ (weights @ rows)), torch.ones(size), rtol=1e-8, atol=1e-8
    )
    torch.testing.assert_close((weights @ rows).norm(), torch.tensor(size**0.5))


def test_orthogonal_and_equal_gradients_have_closed_forms() -> None:
    lengths = torch.tensor([0.5, 2.0, 30.0])
    torch.testing.assert_close(nash(torch.diag(lengths)), 1 / lengths)
    torch.testing.assert_close(nash(torch.full((4, 9), 2.0)), torch.full((4,), 1 / (2 * 6)))


def test_no_direction_has_a_larger_product() -> None:
    """Of improvements, among directions of the same length."""
    rows = torch.randn(4, 5)
    joint = nash(rows) @ rows
    others = joint + 0.5 * torch.randn(5000, 5)
    gains = (others * joint.norm() / others.norm(dim=1, keepdim=True)) @ rows.T
    products = torch.where((gains > 0).all(1), gains.prod(1), 0)
    assert products.max() > 0
    assert (products < (rows @ joint).prod()).all()


def test_a_zero_gradient_leaves_the_others_alone() -> None:
    """The other tasks are weighed as if they were alone."""
    rows = torch.randn(3, 4)
    beside = torch.cat([rows[:1], torch.zeros(1, 4), rows[1:]])
    torch.testing.assert_close(nash(beside)[[0, 2, 3]], nash(rows))


def test_opposite_gradients_give_finite_weights() -> None:
    """The joint gradient is nearly 0 then."""
    rows = torch.tensor([[3.0, 4.0], [-6.0, -8.0]])
    weights = nash(rows)
    assert weights.isfinite().all()
    assert (weights @ rows).norm() < 1e-3
