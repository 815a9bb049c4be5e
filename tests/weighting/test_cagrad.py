"""CAGrad against directions of its ball at random and the closed form of two tasks."""

import pytest
import torch

from raymtl.weighting import CAGradSpec
from tests.weighting import ABCD, Rows, weigh

pytestmark = pytest.mark.usefixtures("float64")


def direction(rows: torch.Tensor, c: float) -> torch.Tensor:
    """The paper's d."""
    size = len(rows)
    weights = weigh(CAGradSpec(c=c).build(ABCD[:size]), torch.ones(size), Rows(rows))
    return weights @ rows * (1 + c) / size


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("c", [0.1, 0.4, 0.9])
def test_no_direction_improves_the_worst_task_more(c: float, seed: int) -> None:
    """Among the directions of the ball around the mean gradient."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(4, 5, generator=generator)
    mean, found = rows.mean(0), direction(rows, c)
    others = torch.randn(20000, 5, generator=generator)
    others = mean + c * mean.norm() * others / others.norm(dim=1, keepdim=True)
    assert (found - mean).norm() <= c * mean.norm() * (1 + 1e-10)
    assert ((others @ rows.T).min(1).values <= (rows @ found).min()).all()


def test_without_a_ball_it_is_the_sum() -> None:
    assert CAGradSpec(c=0).build(ABCD)(torch.ones(4), Rows(torch.randn(4, 5))).tolist() == [1] * 4


def test_equal_orthogonal_gradients_stretch_along_their_sum() -> None:
    torch.testing.assert_close(direction(torch.eye(2), 0.5), torch.full((2,), 0.75))


@pytest.mark.parametrize("cosine", [-0.99, -0.9999, -1 + 1e-9])
def test_nearly_opposite_gradients_stay_within_the_ball(cosine: float) -> None:
    rows = torch.tensor([[1.0, 0.0], [2 * cosine, 2 * (1 - cosine**2) ** 0.5]])
    found, mean = direction(rows, 0.5), rows.mean(0)
    torch.testing.assert_close((found - mean).norm(), 0.5 * mean.norm(), rtol=1e-6, atol=0)


def test_opposite_gradients_stay_within_the_ball() -> None:
    """0 lies on an edge of the hull, so |g_w| = 0: the limit of the paper's d."""
    rows = torch.tensor([[1.0, 0.0], [-2.0, 0.0], [0.5, 1.0]])
    found, mean = direction(rows, 0.6), rows.mean(0)
    assert (found - mean).norm() <= 0.6 * mean.norm() * (1 + 1e-6)
    torch.testing.assert_close(found[0], torch.tensor(0.0), atol=1e-7, rtol=0)


def test_a_zero_gradient_leaves_the_others_alone() -> None:
    """The other tasks are weighed as if they were alone."""
    rows = torch.randn(3, 4)
    weights = CAGradSpec().build(ABCD)(torch.ones(4), Rows(torch.cat([rows, torch.zeros(1, 4)])))
    torch.testing.assert_close(weights[:3], CAGradSpec().build(ABCD[:3])(torch.ones(3), Rows(rows)))
