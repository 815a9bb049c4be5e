"""ExcessMTL against TorchJD's over a sequence of Jacobians, and against the formula where labels are missing."""

import pytest
import torch
from torchjd.aggregation import ExcessMTLWeighting

from raymtl.weighting import ExcessMTLSpec
from tests.weighting import ABC, Rows

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize("warmup", [1, 4])
def test_weights_are_three_times_torchjds_over_a_sequence(warmup: int) -> None:
    module, oracle = (
        ExcessMTLSpec(lr=0.3, warmup=warmup).build(ABC),
        ExcessMTLWeighting(0.3, warmup),
    )
    for step in range(15):
        rows = (
            torch.randn(3, 8)
            * torch.tensor([[0.1], [1.0], [3.0]])
            / (1 + step * torch.tensor([[0.0], [1.0], [0.1]]))
        )
        weights = module(torch.rand(3), Rows(rows))
        torch.testing.assert_close(weights, 3 * oracle(rows), rtol=1e-6, atol=1e-12)
        torch.testing.assert_close(module(), weights)
    assert not torch.allclose(weights, torch.ones(3), rtol=0.05)


def test_rows_stay_as_they_are() -> None:
    rows = torch.randn(3, 8)
    jacobian = Rows(rows.clone())
    ExcessMTLSpec().build(ABC)(torch.rand(3), jacobian)
    torch.testing.assert_close(jacobian.matrix, rows, rtol=0, atol=0)


def test_it_equals_a_loop_with_missing_labels() -> None:
    module = ExcessMTLSpec(lr=0.2, warmup=2).build(ABC)
    weights, squares = [1.0] * 3, [torch.zeros(4)] * 3
    early: list[list[float]] = [[], [], []]
    for step in range(12):
        tasks = [[0, 1, 2], [2, 0], [1]][step % 3]
        rows = torch.randn(len(tasks), 4)
        share = sum(weights[task] for task in tasks)
        for task, row in zip(tasks, rows, strict=True):
            squares[task] = squares[task] + row**2
            excess = float((row * row / squares[task].add(1e-7).sqrt()).sum())
            if len(early[task]) < 2:
                early[task].append(excess)
                relative = 1.0
            else:
                relative = excess / (sum(early[task]) / 2 + 1e-7)
            weights[task] *= torch.tensor(0.2 * relative).exp().item()
        total = sum(weights[task] for task in tasks)
        for task in tasks:
            weights[task] *= share / total
        found = module(torch.rand(len(tasks)), Rows(rows), torch.tensor(tasks))
        own = torch.tensor([weights[task] for task in tasks])
        torch.testing.assert_close(found, len(tasks) * own / own.sum())
        torch.testing.assert_close(module(), torch.tensor(weights))
    torch.testing.assert_close(module().sum(), torch.tensor(3.0))


def test_the_unit_of_a_loss_has_no_say() -> None:
    here, there = (
        ExcessMTLSpec(lr=0.3, warmup=2).build(ABC),
        ExcessMTLSpec(lr=0.3, warmup=2).build(ABC),
    )
    units = torch.tensor([[1.0], [100.0], [0.1]])
    for _ in range(6):
        rows = 10 * torch.randn(3, 8)
        torch.testing.assert_close(
            there(torch.rand(3), Rows(units * rows)),
            here(torch.rand(3), Rows(rows)),
            rtol=1e-4,
            atol=0,
        )


def test_a_weight_that_has_nearly_vanished_comes_back() -> None:
    """In float32 too, where a weight itself would have become 0 for good."""
    module = ExcessMTLSpec(lr=50.0, warmup=1).build(ABC[:2])
    rows = torch.ones(2, 3, dtype=torch.float32)
    for leader in (0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1):
        scale = torch.tensor(
            [[1.0 if t == leader else 1e-3] for t in range(2)], dtype=torch.float32
        )
        weights = module(torch.rand(2, dtype=torch.float32), Rows(scale * rows))
        assert weights.isfinite().all()
    assert weights[1] > 1
