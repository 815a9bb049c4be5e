"""The two graphs of a function give its outputs and its gradients to the bit."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from raymtl.step.joint_graph import JointGraph

Function = Callable[[Sequence[Tensor], Sequence[Tensor]], Sequence[Tensor]]


def filled_in_place(values: Sequence[Tensor], leaves: Sequence[Tensor]) -> Sequence[Tensor]:
    """Adds into zeros that are the same at every replay until they are changed."""
    total = torch.zeros(3)
    total.add_(values[0] * leaves[0])
    return [total.square().sum(), (total * values[1]).sum()]


def partly_followed(values: Sequence[Tensor], leaves: Sequence[Tensor]) -> Sequence[Tensor]:
    """The second output has no gradient, and the second value gets none."""
    return [(values[0].exp() * leaves[0]).sum(), leaves[0].sum()]


def repeated(values: Sequence[Tensor], leaves: Sequence[Tensor]) -> Sequence[Tensor]:
    """Two outputs through one inner gradient."""
    slope = torch.func.grad(lambda value: (value * leaves[0]).tanh().sum())(values[0])
    moved = values[0] - 0.1 * slope
    return [moved.square().sum(), (moved * values[1]).sum()]


FUNCTIONS = [filled_in_place, partly_followed, repeated]


def arguments(seed: int) -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    values = [torch.randn(3, generator=generator).requires_grad_() for _ in range(2)]
    return values, [torch.randn(3, generator=generator)]


def gradients(outputs: Sequence[Tensor], values: Sequence[Tensor]) -> list[Tensor | None]:
    """Those of each output in turn."""
    found: list[Tensor | None] = []
    for output in outputs:
        if output.requires_grad:
            found += torch.autograd.grad(output, values, retain_graph=True, allow_unused=True)
    return found


@pytest.mark.parametrize("function", FUNCTIONS)
def test_replays_equal_the_function(function: Function) -> None:
    graph = JointGraph(function, *arguments(0))
    for seed in (1, 2, 2):
        values, leaves = arguments(seed)
        outputs, expected = graph(values, leaves), function(values, leaves)
        for one, other in zip(outputs, expected, strict=True):
            assert torch.equal(one, other)
            assert one.requires_grad == other.requires_grad
        pairs = zip(gradients(outputs, values), gradients(expected, values), strict=True)
        for own, right in pairs:
            own_value = torch.zeros(3) if own is None else own
            right_value = torch.zeros(3) if right is None else right
            assert torch.equal(own_value, right_value)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_replays_without_gradients_follow_none(function: Function) -> None:
    with torch.no_grad():
        graph = JointGraph(function, *arguments(0))
        values, leaves = arguments(1)
        for one, other in zip(graph(values, leaves), function(values, leaves), strict=True):
            assert torch.equal(one, other)
            assert not one.requires_grad
