"""What holds of the state of every weighting of losses, and of those that move by gradients."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from raymtl.weighting import (
    AutoLambdaSpec,
    DBMTLSpec,
    DWASpec,
    EqualSpec,
    ExcessMTLSpec,
    FAMOSpec,
    GLSSpec,
    GradNormSpec,
    IMTLLSpec,
    RandomSpec,
    STCHSpec,
    Weighting,
)
from raymtl.weighting.base import WeightingSpecBase
from tests.weighting import ABC, Rows, weigh

SPECS: dict[str, WeightingSpecBase] = {
    spec.name: spec
    for spec in (
        AutoLambdaSpec(lr=0.1),
        DBMTLSpec(),
        DWASpec(period=2),
        EqualSpec(),
        ExcessMTLSpec(lr=0.3, warmup=2),
        FAMOSpec(),
        GLSSpec(),
        GradNormSpec(),
        IMTLLSpec(),
        RandomSpec(),
        STCHSpec(warmup=8),
    )
}
ON_A_SIMPLEX = ("dwa", "equal", "excess_mtl", "famo", "gradnorm", "random", "stch")
STATELESS = ("equal", "imtl_l")


def batches(number: int, seed: int = 0) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Losses before and after the move, and rows, of three tasks, in float64."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(number):
        losses = torch.rand(2, 3, generator=generator, dtype=torch.float64) + 0.1
        yield losses[0], losses[1], torch.randn(3, 5, generator=generator, dtype=torch.float64)


def step(
    module: Weighting,
    batch: tuple[Tensor, Tensor, Tensor],
    tasks: list[int],
    dtype: torch.dtype,
) -> Tensor:
    before, after, rows = (values[tasks].to(dtype) for values in batch)
    losses = before.clone().requires_grad_()
    weights = weigh(module, losses, Rows(rows), torch.tensor(tasks))
    if weights.ndim == 0:
        (weights,) = torch.autograd.grad(weights, losses)
    module.update_after_step(before, after, torch.tensor(tasks))
    return weights.detach()


@pytest.mark.parametrize("name", SPECS)
def test_unlabelled_tasks_keep_their_state(name: str) -> None:
    module = SPECS[name].build(ABC)
    for batch in batches(5):
        step(module, batch, [0, 1, 2], torch.float64)
    old = dict(module.named_buffers())
    for batch in batches(2, seed=1):
        step(module, batch, [2, 0], torch.float64)
    by_task = {key: value for key, value in module.named_buffers() if value.ndim}
    for key, value in by_task.items():
        assert torch.equal(value[1], old[key][1]), key
    moved = any(not torch.equal(value[[0, 2]], old[key][[0, 2]]) for key, value in by_task.items())
    assert moved == (name not in STATELESS)


@pytest.mark.parametrize("name", SPECS)
def test_weights_are_permutation_equivariant(name: str) -> None:
    one, other = SPECS[name].build(ABC), SPECS[name].build(ABC)
    for batch in batches(6):
        here = step(one, batch, [0, 1, 2], torch.float64)
        there = step(other, batch, [2, 0, 1], torch.float64)
        torch.testing.assert_close(there, here[[2, 0, 1]])


@pytest.mark.parametrize("name", SPECS)
def test_state_that_is_assigned_goes_on_exactly(name: str) -> None:
    one, other = SPECS[name].build(ABC), SPECS[name].build(ABC)
    for batch in batches(5):
        step(one, batch, [0, 1, 2], torch.float64)
    for key, value in one.named_buffers():
        setattr(other, key, value.clone())
    for batch in batches(4, seed=1):
        expected, found = (step(module, batch, [0, 1, 2], torch.float64) for module in (one, other))
        assert torch.equal(found, expected)


@pytest.mark.parametrize("name", SPECS)
def test_precision_is_that_of_the_losses(name: str) -> None:
    in_32, in_64 = SPECS[name].build(ABC), SPECS[name].build(ABC)
    for batch in batches(8):
        coarse, fine = (
            step(in_32, batch, [0, 1, 2], torch.float32),
            step(in_64, batch, [0, 1, 2], torch.float64),
        )
        assert (coarse.dtype, fine.dtype) == (torch.float32, torch.float64)
        torch.testing.assert_close(coarse.double(), fine, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SPECS)
def test_the_inner_loop_moves_no_state(
    name: str,
) -> None:
    """Its weights sum to the number of tasks."""
    module = SPECS[name].build(ABC)
    for batch in batches(5):
        step(module, batch, [0, 1, 2], torch.float64)
        old = {key: value.clone() for key, value in module.named_buffers()}
        weights = module()
        assert all(torch.equal(value, old[key]) for key, value in module.named_buffers())
        torch.testing.assert_close(weights.sum().double(), torch.tensor(3.0, dtype=torch.float64))


@pytest.mark.parametrize("name", ON_A_SIMPLEX)
def test_weights_sum_to_the_labelled_tasks(name: str) -> None:
    module = SPECS[name].build(ABC)
    for batch, tasks in zip(batches(8), [[0, 1, 2], [1, 2], [0], [0, 2]] * 2, strict=True):
        weights = step(module, batch, tasks, torch.float64)
        torch.testing.assert_close(
            weights.sum(), torch.tensor(float(len(tasks)), dtype=torch.float64)
        )
        assert (weights > 0).all()


@pytest.mark.parametrize("name", sorted(SPECS.keys() - {"auto_lambda"}))
def test_a_task_alone_weighs_1_whatever_has_been(name: str) -> None:
    """All but Auto-Lambda, whose weights are not relative."""
    module = SPECS[name].build(ABC)
    for batch, tasks in zip(
        batches(6), [[0, 1, 2], [0, 1, 2], [0, 1, 2], [1], [1], [2]], strict=True
    ):
        weights = step(module, batch, tasks, torch.float64)
    torch.testing.assert_close(weights, torch.ones(1, dtype=torch.float64))


@pytest.mark.parametrize("name", SPECS)
def test_state_keeps_no_graph(name: str) -> None:
    module = SPECS[name].build(ABC)
    for batch in batches(3):
        losses = batch[0].requires_grad_()
        weigh(module, losses, Rows(batch[2]))
        module.update_after_step(losses, batch[1], torch.arange(3))
    assert not any(value.requires_grad for value in module.buffers())
