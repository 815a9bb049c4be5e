"""Traces a function and its gradient as two graphs of plain operations."""

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from raymtl.internals.torch import described_once
from raymtl.step.graph_passes import shortened

Function = Callable[[Sequence[Tensor], Sequence[Tensor]], Sequence[Tensor]]
"""(values, leaves) -> outputs, where gradients are taken in the values alone."""


class JointGraph:
    """The graphs of a function and of its gradient, traced for the shapes of its arguments.

    Tracing runs the function on real tensors, which is several times faster than on fake ones.
    Tensors that the function itself holds, such as buffers, become constants. A result can be
    differentiated once, but its backward pass may run several times.
    """

    def __init__(
        self, function: Function, values: Sequence[Tensor], leaves: Sequence[Tensor]
    ) -> None:
        from torch.fx.experimental.proxy_tensor import make_fx  # slow to import

        self._function, self._num_values = function, len(values)
        probe = function(values, leaves)
        self.followed = [each.requires_grad for each in probe]
        """Whether each output depends on a value that requires a gradient."""
        self.reached: list[bool] = []
        """Whether each value gets a gradient."""
        tangents = [torch.ones_like(each) for each in self._followed(probe)]
        del probe
        with described_once():
            joint = make_fx(self._joint)(*values, *leaves, *tangents)
        joint.graph.eliminate_dead_code()
        self.forward, self.backward = _split(
            shortened(joint), len(self.followed), len(values) + len(leaves)
        )

    def __call__(self, values: Sequence[Tensor], leaves: Sequence[Tensor]) -> tuple[Tensor, ...]:
        if any(self.reached):
            outputs: tuple[Tensor, ...] = _Replay.apply(self, *values, *leaves)
            return outputs
        return tuple(self.forward(*values, *leaves)[: len(self.followed)])

    def _joint(self, *arguments: Tensor) -> list[Tensor]:
        """The outputs, then the gradients of the values that get one."""
        num_tangents = sum(self.followed)
        given = arguments[: len(arguments) - num_tangents]
        tangents = arguments[len(arguments) - num_tangents :]
        values = [
            value.detach().requires_grad_(value.requires_grad)
            for value in given[: self._num_values]
        ]
        outputs = self._function(values, given[self._num_values :])
        results = [each.detach() for each in outputs]
        leaves = [value for value in values if value.requires_grad]
        gradients: Iterator[Tensor | None] = iter(())
        if tangents:
            gradients = iter(
                torch.autograd.grad(self._followed(outputs), leaves, tangents, allow_unused=True)
            )
        self.reached = []
        for value in values:
            gradient = next(gradients, None) if value.requires_grad else None
            self.reached.append(gradient is not None)
            if gradient is not None:
                results.append(gradient)
        return results

    def _followed(self, outputs: Sequence[Any]) -> list[Any]:
        return [each for each, followed in zip(outputs, self.followed, strict=True) if followed]


class _Replay(torch.autograd.Function):
    """Runs the graph of the function forwards, and the graph of its gradient backwards."""

    @staticmethod
    def forward(ctx: Any, graph: JointGraph, *arguments: Tensor) -> tuple[Tensor, ...]:
        results = graph.forward(*arguments)
        outputs, saved = results[: len(graph.followed)], results[len(graph.followed) :]
        ctx.graph, ctx.num_arguments = graph, len(arguments)
        ctx.save_for_backward(*saved)
        pairs = zip(outputs, graph.followed, strict=True)
        ctx.mark_non_differentiable(*(each for each, followed in pairs if not followed))
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *tangents: Tensor) -> tuple[Tensor | None, ...]:
        graph: JointGraph = ctx.graph
        found = iter(graph.backward(*ctx.saved_tensors, *graph._followed(tangents)))
        gradients: list[Tensor | None] = [None] * (1 + ctx.num_arguments)
        for index, reached in enumerate(graph.reached):
            if reached:
                gradients[1 + index] = next(found)
        return tuple(gradients)


def _split(
    joint: GraphModule, num_outputs: int, num_arguments: int
) -> tuple[GraphModule, GraphModule]:
    """The graph up to the last output, and the graph of what comes after it.

    The first returns the outputs and all that the second needs. The second takes that and the
    tangents. Operations keep their order, because some change their argument.
    """
    nodes = list(joint.graph.nodes)
    results = list(nodes[-1].args[0])
    outputs, gradients = results[:num_outputs], results[num_outputs:]
    place = {node: index for index, node in enumerate(nodes)}
    arguments = nodes[:num_arguments]
    tangents = [node for node in nodes if node.op == "placeholder"][num_arguments:]
    calls = [node for node in nodes if node.op == "call_function"]
    end = max(place[node] for node in outputs)
    first = [node for node in calls if place[node] <= end]
    second = [node for node in calls if place[node] > end]

    known = {*second, *tangents}
    used = chain.from_iterable(node.all_input_nodes for node in second)
    needed = [node for node in chain(used, gradients) if node not in known]
    saved = [node for node in dict.fromkeys(needed) if node.op != "get_attr"]
    forward = _graph_of(joint, arguments, first, [*outputs, *saved])
    backward = _graph_of(joint, [*saved, *tangents], second, gradients)
    return forward, backward


def _graph_of(
    joint: GraphModule, inputs: Sequence[Node], calls: Sequence[Node], outputs: Sequence[Node]
) -> GraphModule:
    """A graph of these calls and of the constants that they use."""
    graph = Graph()
    copies: dict[Node, Node] = {}
    for index, node in enumerate(inputs):
        copies[node] = graph.placeholder(f"input_{index}")
    used = chain(chain.from_iterable(node.all_input_nodes for node in calls), outputs)
    for node in dict.fromkeys(used):
        if node.op == "get_attr":
            copies[node] = graph.node_copy(node)
    for node in calls:
        copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output([copies[node] for node in outputs])
    return GraphModule(joint, graph)
