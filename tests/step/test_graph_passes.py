"""A shortened graph computes the same numbers by fewer calls."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from raymtl.step.graph_passes import shortened


def graph_of(function: Callable[[Tensor], Tensor], value: Tensor) -> GraphModule:
    """The graph of the function with the tensors that the tracer saw."""
    return make_fx(function, tracing_mode="fake")(value)


def calls(module: GraphModule) -> list[str]:
    """The names of the operations, in order."""
    return [
        str(node.target.overloadpacket) for node in module.graph.nodes if node.op == "call_function"
    ]


DETOURS: dict[str, tuple[Callable[[Tensor], Tensor], list[str]]] = {
    "detach": (lambda x: x.detach().exp(), ["aten.exp"]),
    "view of the same shape": (lambda x: x.view(2, 3).exp(), ["aten.exp"]),
    "expand to the same shape": (lambda x: x.expand(2, 3).exp(), ["aten.exp"]),
    "two transposes": (lambda x: x.t().t().exp(), ["aten.exp"]),
    "two named transposes": (lambda x: x.transpose(0, 1).transpose(1, 0).exp(), ["aten.exp"]),
    "ones of a shape": (lambda x: x + torch.ones_like(x) * 2, ["aten.add"]),
    "a number as tensor": (lambda x: x * torch.scalar_tensor(3.0), ["aten.mul"]),
}


@pytest.mark.parametrize("case", DETOURS)
def test_detours_go_and_numbers_stay(case: str) -> None:
    function, expected = DETOURS[case]
    value = torch.randn(2, 3)
    module = graph_of(function, value)
    before = len(calls(module))
    shortened(module)
    assert calls(module) == expected
    assert before > len(expected)
    fresh = torch.randn(2, 3)
    assert torch.equal(module(fresh), function(fresh))


KEPT: dict[str, Callable[[Tensor], Tensor]] = {
    "view of another shape": lambda x: x.view(3, 2).exp(),
    "transposes of different pairs": lambda x: x.view(1, 2, 3).transpose(0, 1).transpose(1, 2),
    "another type": lambda x: x.to(torch.float64) + 1,
    "a copy that orders memory": lambda x: x.t().clone(memory_format=torch.contiguous_format),
}


@pytest.mark.parametrize("case", KEPT)
def test_what_changes_something_stays(case: str) -> None:
    value = torch.randn(2, 3)
    module = graph_of(KEPT[case], value)
    before = calls(module)
    shortened(module)
    assert calls(module) == before
    assert torch.equal(module(value), KEPT[case](value))


def test_random_numbers_are_drawn_at_every_replay() -> None:
    module = graph_of(lambda x: x + torch.rand(2, 3), torch.zeros(2, 3))
    shortened(module)
    assert not torch.equal(module(torch.zeros(2, 3)), module(torch.zeros(2, 3)))
