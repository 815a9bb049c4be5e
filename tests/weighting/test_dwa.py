"""DWA against TorchJD's, called at the end of each window, and against the formula where labels are missing."""

import pytest
import torch
from torchjd.scalarization import DWA

from raymtl.weighting import DWASpec
from tests.weighting import ABC

pytestmark = pytest.mark.usefixtures("float64")


def test_windows_of_steps_equal_torchjds_epochs() -> None:
    module, oracle = DWASpec(period=4, temperature=0.7).build(ABC), DWA(0.7)
    weights = []
    for step in range(1, 22):
        losses = torch.rand(3).requires_grad_()
        (expected,) = torch.autograd.grad(oracle(losses), losses)
        weights.append(module(losses))
        torch.testing.assert_close(weights[-1], expected)
        if step % 4 == 0:
            oracle.step()
    assert all(row.tolist() == [1, 1, 1] for row in weights[:8])
    assert not torch.allclose(weights[8], torch.ones(3))


def test_a_task_counts_its_labelled_steps_alone() -> None:
    module = DWASpec(period=2, temperature=1.0).build(ABC)
    seen: list[list[float]] = [[], [], []]
    generator = torch.Generator().manual_seed(5)
    for _ in range(60):
        tasks = (torch.rand(3, generator=generator) < 0.6).nonzero().flatten()
        if not len(tasks):
            continue
        losses = torch.rand(len(tasks), generator=generator) + 0.1
        rates = []
        for task in tasks.tolist():
            full = len(seen[task]) // 2 * 2
            last, older = (
                sum(seen[task][full - 2 : full]) / 2,
                sum(seen[task][full - 4 : full - 2]) / 2,
            )
            rates.append(last / older if full >= 4 else 1.0)
        powers = torch.tensor(rates).exp()
        torch.testing.assert_close(module(losses, tasks), len(tasks) * powers / powers.sum())
        for task, loss in zip(tasks.tolist(), losses.tolist(), strict=True):
            seen[task].append(loss)


def test_slower_tasks_weigh_more_in_any_unit() -> None:
    slow, fast = DWASpec(period=1).build(ABC[:2]), DWASpec(period=1).build(ABC[:2])
    for step in range(5):
        losses = torch.tensor([0.9**step, 0.5**step])
        weights = slow(losses)
        torch.testing.assert_close(fast(losses * torch.tensor([1e3, 1e-3])), weights)
    assert weights[0] > 1 > weights[1]


def test_a_zero_mean_loss_gives_the_neutral_rate() -> None:
    module = DWASpec(period=1).build(ABC[:2])
    for _ in range(4):
        weights = module(torch.tensor([0.0, 1.0]))
    assert weights.tolist() == [1, 1]
