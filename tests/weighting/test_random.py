"""Random weights: the distribution of the paper, and the same draw for all who must agree on it."""

import pytest
import torch

from raymtl.weighting import RandomSpec
from tests.weighting import ABC

pytestmark = pytest.mark.usefixtures("float64")


def test_log_weights_differ_like_normal_numbers() -> None:
    """log w_a - log w_b = n_a - n_b has mean 0 and variance 2; successive draws are uncorrelated."""
    module = RandomSpec().build(ABC)
    weights = torch.stack([module(torch.ones(3)) for _ in range(3000)])
    torch.testing.assert_close(weights.sum(1), torch.full((3000,), 3.0))
    differences = weights[:, 0].log() - weights[:, 1].log()
    assert abs(differences.mean()) < 4 * (2 / 3000) ** 0.5
    assert abs(differences.var() / 2 - 1) < 4 * (2 / 3000) ** 0.5
    assert abs((differences[1:] * differences[:-1]).mean() / 2) < 4 / 3000**0.5
    assert (differences.abs() < 1).double().mean() == pytest.approx(0.5205, abs=0.04)  # erf(1 / 2)


def test_draws_depend_on_the_updates_alone() -> None:
    one, other = RandomSpec().build(ABC), RandomSpec().build(ABC)
    for step in range(5):
        torch.manual_seed(step)
        torch.testing.assert_close(one(torch.ones(3)), other(torch.rand(3)), rtol=0, atol=0)


def test_inner_loop_and_outer_step_share_a_draw() -> None:
    module = RandomSpec().build(ABC)
    for _ in range(4):
        inner = module()
        torch.testing.assert_close(module(torch.ones(3)), inner, rtol=0, atol=0)


def test_fewer_tasks_renormalise_the_same_draw() -> None:
    module = RandomSpec().build(ABC)
    of_all = module()
    some = torch.tensor([2, 0])
    torch.testing.assert_close(module(torch.ones(2), some), 2 * of_all[some] / of_all[some].sum())
