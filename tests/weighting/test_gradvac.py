"""GradVac against the paper's loop over gradients, with labels missing; and what its targets do."""

import pytest
import torch

from raymtl.weighting import GradVacSpec, PCGradSpec
from raymtl.weighting.pcgrad import draw_order
from tests.weighting import Rows, regressions

TASKS = regressions(map(str, range(5)))
pytestmark = pytest.mark.usefixtures("float64")


def cosine(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cosine_similarity(one, other, dim=0)


def test_it_equals_the_papers_loop_with_missing_labels() -> None:
    module, targets, beta = GradVacSpec(beta=0.3).build(TASKS), torch.zeros(5, 5), 0.3
    for step in range(12):
        tasks = torch.tensor([[0, 1, 2, 3, 4], [4, 1, 2], [3], [0, 2]][step % 4])
        rows = torch.randn(len(tasks), 6) + 0.5 * torch.randn(6)
        joint = torch.zeros(6)
        for index, others in enumerate(draw_order(len(tasks), step).tolist()):
            moved = rows[index].clone()
            for other in others:
                now, target = (
                    cosine(moved, rows[other]),
                    targets[tasks[index], tasks[other]].clone(),
                )
                if now < target:
                    turn = target * (1 - now**2).sqrt() - now * (1 - target**2).sqrt()
                    moved += (
                        moved.norm()
                        * turn
                        / rows[other].norm()
                        / (1 - target**2).sqrt()
                        * rows[other]
                    )
                    torch.testing.assert_close(cosine(moved, rows[other]), target)
                targets[tasks[index], tasks[other]] = (1 - beta) * target + beta * now
            joint += moved
        torch.testing.assert_close(module(torch.ones(len(tasks)), Rows(rows), tasks) @ rows, joint)
        torch.testing.assert_close(module.targets, targets)
    assert targets.abs().max() > 0.1


def test_with_fresh_targets_it_is_pcgrad() -> None:
    rows = torch.randn(5, 6)
    expected = PCGradSpec().build(TASKS)(torch.ones(5), Rows(rows))
    torch.testing.assert_close(
        GradVacSpec(beta=1e-12).build(TASKS)(torch.ones(5), Rows(rows)), expected
    )


def test_once_parallel_gradients_turn_by_finite_steps() -> None:
    """Gradients that used to be parallel are turned back by a finite step."""
    module = GradVacSpec(beta=1.0).build(TASKS[:2])
    module(torch.ones(2), Rows(torch.tensor([[1.0, 0.0], [2.0, 0.0]])))
    assert module.targets[0, 1] == 1
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    weights = module(torch.ones(2), Rows(rows))
    assert weights.isfinite().all() and (weights > 100).all()


def test_a_zero_gradient_weighs_one() -> None:
    """Its targets stay as they are."""
    module = GradVacSpec(beta=0.5).build(TASKS[:3])
    module(torch.ones(3), Rows(torch.tensor([[1.0, 0.5], [1.0, 0.0], [0.3, 1.0]])))
    old = module.targets.clone()
    weights = module(torch.ones(3), Rows(torch.tensor([[1.0, 0.0], [0.0, 0.0], [-1.0, 1.0]])))
    assert weights[1] == 1 and weights.isfinite().all()
    assert torch.equal(module.targets[1], old[1]) and torch.equal(module.targets[:, 1], old[:, 1])
    assert not torch.equal(module.targets[0, 2], old[0, 2])
