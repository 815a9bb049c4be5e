"""GradDrop: one sign a coordinate, with the paper's chances, and draws that are its state alone."""

import pytest
import torch

from raymtl.weighting import GradDropSpec
from raymtl.weighting.graddrop import draw_chances, drop
from tests.weighting import Rows, regressions

TASKS = regressions(map(str, range(4)))
pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize("leak", [0.0, 0.25])
def test_the_expected_gradient_follows_the_papers_purity(leak: float) -> None:
    """The chances run over a grid of [0, 1), so the mean is exact to one over their number."""
    rows = torch.randn(4, 7)
    purity = (1 + rows.sum(0) / rows.abs().sum(0)) / 2
    grid = (torch.arange(1000) + 0.5) / 1000
    dropped = torch.stack([drop(rows, chance.expand(7), leak) for chance in grid]).mean(0)
    kept = purity * rows.clamp(min=0) + (1 - purity) * rows.clamp(max=0)
    torch.testing.assert_close(
        dropped, leak * rows + (1 - leak) * kept, atol=1e-3 * float(rows.abs().max()), rtol=0
    )


def test_every_coordinate_keeps_one_whole_sign() -> None:
    rows = torch.randn(4, 100)
    given = Rows(rows)
    assert GradDropSpec().build(TASKS)(torch.ones(4), given).tolist() == [1] * 4
    for before, after in zip(rows.T, given.matrix.T, strict=True):
        positive, negative = before.clamp(min=0), before.clamp(max=0)
        assert torch.equal(after, positive) or torch.equal(after, negative)


def test_one_sign_or_full_leak_changes_nothing() -> None:
    rows = torch.rand(4, 50) * torch.randn(50).sign()
    assert torch.equal(drop(rows, draw_chances(50, 0), 0.0), rows)
    assert torch.equal(drop(rows, torch.zeros(50), 0.0), rows)
    conflicting = torch.randn(4, 50)
    assert torch.equal(drop(conflicting, draw_chances(50, 0), 1.0), conflicting)


def test_draws_depend_on_the_state_alone() -> None:
    """Each step draws anew."""
    one, other, rows = GradDropSpec().build(TASKS), GradDropSpec().build(TASKS), torch.randn(4, 60)
    steps = []
    for _ in range(4):
        given = Rows(rows)
        one(torch.ones(4), given)
        steps.append(given.matrix)
    assert not torch.equal(steps[0], steps[1])
    other.load_state_dict({"num_updates": torch.tensor(2)})
    torch.manual_seed(99)
    given = Rows(rows)
    other(torch.ones(4), given)
    assert torch.equal(given.matrix, steps[2])
