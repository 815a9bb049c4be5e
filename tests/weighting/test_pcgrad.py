"""PCGrad against the paper's own loop over gradients."""

import pytest
import torch

from raymtl.weighting import PCGradSpec, pcgrad
from raymtl.weighting.pcgrad import draw_order, project
from tests.weighting import Rows, regressions

TASKS = regressions(map(str, range(8)))
pytestmark = pytest.mark.usefixtures("float64")


def loop(rows: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    projected = rows.clone()
    for index, others in enumerate(order.tolist()):
        for other in others:
            overlap = projected[index] @ rows[other]
            if overlap < 0:
                projected[index] -= overlap / (rows[other] @ rows[other]) * rows[other]
    return projected.sum(0)


@pytest.mark.parametrize("seed", range(20))
def test_it_equals_the_loop_of_the_paper(seed: int) -> None:
    rows = torch.randn(2 + seed % 7, 9, generator=torch.Generator().manual_seed(seed))
    module = PCGradSpec().build(TASKS[: len(rows)])
    for step in range(3):
        expected = loop(rows, torch.from_numpy(draw_order(len(rows), step)))
        torch.testing.assert_close(module(torch.ones(len(rows)), Rows(rows)) @ rows, expected)


@pytest.mark.parametrize("steps_at_once", [1, 2, 3, 8])
def test_steps_at_once_change_no_weight(
    monkeypatch: pytest.MonkeyPatch, steps_at_once: int
) -> None:
    rows, order = torch.randn(8, 5), draw_order(8, 1)
    monkeypatch.setattr(pcgrad, "STEPS_AT_ONCE", steps_at_once)
    weights = torch.from_numpy(project((rows @ rows.T).numpy(), 0.0, order))
    torch.testing.assert_close(weights @ rows, loop(rows, torch.from_numpy(order)))


def test_a_gradient_is_never_projected_onto_itself() -> None:
    """At 0, 150 and 210 degrees: the first one, projected along the others, points away from what it was."""
    angles = torch.tensor([0.0, 150.0, 210.0]).deg2rad()
    rows = torch.stack([angles.cos(), angles.sin()], 1)
    order = torch.tensor([[1, 2], [0, 2], [0, 1]])
    weights = torch.from_numpy(project((rows @ rows.T).numpy(), 0.0, order.numpy()))
    torch.testing.assert_close(weights @ rows, loop(rows, order))
    first = rows[0] - (rows[0] @ rows[1]) * rows[1]
    first = first - (first @ rows[2]) * rows[2]
    assert first @ rows[0] < 0


def test_pcgrad_is_permutation_equivariant() -> None:
    """Permuting the drawn order with the tasks permutes the weights."""
    rows, order, permutation = (
        torch.randn(5, 4),
        torch.from_numpy(draw_order(5, 3)),
        torch.tensor([3, 0, 4, 1, 2]),
    )
    here = project((rows @ rows.T).numpy(), 0.0, order.numpy())
    moved = rows[permutation]
    there = project(
        (moved @ moved.T).numpy(), 0.0, permutation.argsort()[order[permutation]].numpy()
    )
    torch.testing.assert_close(torch.from_numpy(there), torch.from_numpy(here)[permutation])


def test_two_tasks_conflict_with_neither() -> None:
    for _ in range(50):
        rows = torch.randn(2, 4)
        joint = PCGradSpec().build(TASKS[:2])(torch.ones(2), Rows(rows)) @ rows
        assert (rows @ joint > -1e-12).all()


def test_a_zero_gradient_weighs_one() -> None:
    """The others pass over it."""
    rows = torch.tensor([[1.0, 0.0], [0.0, 0.0], [-1.0, 0.5]])
    weights = PCGradSpec().build(TASKS[:3])(torch.ones(3), Rows(rows))
    torch.testing.assert_close(weights, torch.tensor([2.0, 1.0, 1.8]))


def test_an_order_depends_on_the_updates_alone() -> None:
    """It has each other task once."""
    for num_tasks in (1, 2, 7):
        order = draw_order(num_tasks, 5)
        assert all(
            sorted([index, *others]) == list(range(num_tasks)) for index, others in enumerate(order)
        )
    first = draw_order(7, 5)
    torch.manual_seed(99)
    assert (draw_order(7, 5) == first).all() and (draw_order(7, 6) != first).any()


def test_its_order_is_its_state_alone() -> None:
    rows = torch.tensor([[1.0, 0.0], [-0.5, 1.0], [-0.7, -0.9]])
    one, other = PCGradSpec().build(TASKS[:3]), PCGradSpec().build(TASKS[:3])
    first = [one(torch.ones(3), Rows(rows)) for _ in range(8)]
    other.load_state_dict({"num_updates": torch.tensor(3)})
    torch.manual_seed(99)
    assert torch.equal(other(torch.ones(3), Rows(rows)), first[3])
    assert len({tuple(weights.tolist()) for weights in first}) > 1
