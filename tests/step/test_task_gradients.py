"""Task gradients: exact in float32 where there are many parameters, the same however often they are asked for."""

import pytest
import torch
from torch import nn

from raymtl.step.rows import BLOCK, BLOCK_SIZE, SLAB, inner_products, num_columns
from raymtl.step.task_gradients import Losses, TaskGradients
from raymtl.step.workers import Workers


def gradients_of(
    rows: torch.Tensor, rest: torch.Tensor | None = None, parts: int = 1
) -> TaskGradients:
    """Losses that are linear in two shared leaves and one private to the first task, so that the gradients are known."""
    width = rows.shape[1]
    leaves: list[torch.Tensor] = [
        nn.Parameter(torch.zeros(width // 2, dtype=rows.dtype)),
        nn.Parameter(torch.zeros(width - width // 2, dtype=rows.dtype)),
    ]
    private = nn.Parameter(torch.zeros(3, dtype=rows.dtype))

    def compute() -> Losses:
        joint = torch.cat(leaves)
        losses = [row @ joint / parts for row in rows]
        losses[0] = losses[0] + 5 * private.sum() / parts
        other = rest @ joint / parts if rest is not None else torch.zeros((), dtype=rows.dtype)
        blocks = tuple(loss[None] for loss in losses)
        return Losses(blocks, tuple((task,) for task in range(len(rows))), other)

    return TaskGradients([compute] * parts, range(len(rows)), leaves, [private], Workers())


def test_the_gramian_keeps_its_digits_in_float32() -> None:
    """Products that nearly cancel, as those of unrelated tasks do, next to rows with a common part."""
    rows = torch.randn(3, 3_000_000) + 0.5
    gradients = gradients_of(rows)
    exact = rows.double() @ rows.double().T
    assert ((gradients.gramian() - exact).norm() / exact.norm()) < 2e-6


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("with_rest", [False, True])
def test_combining_weighs_the_shared_parameters_alone(with_rest: bool, parts: int) -> None:
    """Private ones have the plain sum."""
    rows, weights = torch.randn(4, 2 * BLOCK // 1000 + 7), torch.tensor([0.5, 2.0, 0.0, -1.0])
    rest = None
    shared = weights @ rows
    if with_rest:
        rest = torch.randn(rows.shape[1])
        shared = shared + rest
    gradients = gradients_of(rows, rest, parts)
    torch.testing.assert_close(gradients.gramian(), rows @ rows.T)
    expected = torch.cat([shared, torch.full((3,), 5.0)])
    for _ in range(2):
        torch.testing.assert_close(gradients.combine(weights), expected)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("parts", [1, 2])
def test_layouts_of_memory_change_no_gradient(parts: int) -> None:
    """Weights of convolutions with their channels last, and one that no loss but the first has."""
    weight = torch.randn(4, 3, 2, 2).contiguous(memory_format=torch.channels_last)
    leaves = [weight.requires_grad_(), nn.Parameter(torch.randn(5, 4)), nn.Parameter(torch.ones(6))]
    private, pictures = nn.Parameter(torch.randn(3)), torch.randn(7, 3, 5, 5)

    def compute() -> Losses:
        features = nn.functional.conv2d(pictures, leaves[0]).relu().mean((2, 3))
        losses = list((features @ leaves[1].T).square().sum(0)[:3].unbind())
        losses[0] = losses[0] + leaves[2].sum()
        losses[1] = losses[1] + private.square().sum()
        blocks = tuple(loss[None] / parts for loss in losses)
        return Losses(blocks, ((0,), (1,), (2,)), torch.zeros(()))

    rows = []
    for block in compute().blocks:
        grads = torch.autograd.grad(
            parts * block, leaves, retain_graph=True, materialize_grads=True, allow_unused=True
        )
        rows.append(torch.cat([grad.flatten() for grad in grads]))
    expected, weights = torch.stack(rows), torch.tensor([0.3, 2.0, -1.0])
    gradients = TaskGradients([compute] * parts, range(3), leaves, [private], Workers())
    total = torch.cat([weights @ expected, 2 * private.detach()])
    torch.testing.assert_close(gradients.gramian(), expected @ expected.T)
    torch.testing.assert_close(gradients.combine(weights), total)
    torch.testing.assert_close(gradients.rows(), expected)
    torch.testing.assert_close(gradients.combine(weights), total)


@pytest.mark.usefixtures("float64")
def test_changed_rows_replace_the_others() -> None:
    rows = torch.randn(4, 100)
    gradients = gradients_of(rows)
    gradients.change(lambda whole: whole * torch.arange(1.0, 5.0)[:, None])
    changed = rows * torch.arange(1.0, 5.0)[:, None]
    torch.testing.assert_close(gradients.gramian(), changed @ changed.T)
    torch.testing.assert_close(gradients.combine(torch.ones(4))[:100], changed.sum(0))


@pytest.mark.usefixtures("float64")
def test_weighted_losses_weigh_what_is_private_too() -> None:
    rows, weights = torch.randn(3, 10), torch.tensor([0.5, 2.0, -1.0])
    gradients = gradients_of(rows, torch.ones(10))
    torch.testing.assert_close(
        gradients.weighted(weights), torch.cat([weights @ rows + 1, torch.full((3,), 2.5)])
    )


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("num_rows", [1, 2 * SLAB - 1, 2 * SLAB, 3 * SLAB + 5])
def test_inner_products_of_slabs_are_those_of_all(num_rows: int) -> None:
    rows = torch.randn(num_rows, 7)
    torch.testing.assert_close(inner_products(rows), rows @ rows.T)


def test_blocks_of_many_rows_stay_small() -> None:
    assert num_columns(2) == BLOCK
    assert all(num_columns(number) * number <= BLOCK_SIZE for number in (100, 1000, 100_000))


def test_summing_leaves_the_callers_tensor_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other of two workers holds the same."""
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: tensor.mul_(2))
    own = torch.ones(3)
    assert Workers(0, 2).sum(own).tolist() == [2, 2, 2]
    assert own.tolist() == [1, 1, 1]
