"""Traces the losses of a batch of episodes once for each shape, and then runs the graph.

A replayed graph skips module calls, vmap and pytrees, and computes the same numbers to the bit. A
compiled graph also fuses neighbouring operations, and computes the same numbers up to rounding.
"""

import logging
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from raymtl.internals.torch import inductor_graph, traced_call
from raymtl.step.joint_graph import JointGraph
from raymtl.types import MetaBatch, Params

logger = logging.getLogger("raymtl")

Graph = Literal["replay", "compile"]

PATIENCE = 80
"""How often episodes of a further shape run without a graph before they get a replayed one. So many
runs take about as long as tracing does. The numbers are the same in either case."""

LossFunction = Callable[[Params, MetaBatch], tuple[Tensor, ...]]
"""(parameters, episodes) -> tensors, which depend on these two alone."""


class Tracer:
    """The graphs of one training, one for each function and shape.

    If a function cannot be traced, or its graph computes other numbers than the function, the
    training goes on without graphs. One note says why.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.refusal: str | None = None
        """Why nothing is traced any more; None while functions are traced."""
        self._traced: dict[Hashable, Callable[..., Any]] = {}
        self._runs: Counter[Hashable] = Counter()
        """How often each function and shape without a graph has run."""

    def run(
        self, function: LossFunction, key: Hashable, params: Params, episodes: MetaBatch
    ) -> tuple[Tensor, ...]:
        """What `function(params, episodes)` returns, differentiable once in the parameters.

        `key` stands for the function and for everything it depends on besides its arguments. Two
        calls with equal keys may share a graph.
        """
        if self.refusal is not None:
            return function(params, episodes)
        leaves, structure = tree_flatten(episodes)
        values = list(params.values())
        kinds = (*_kinds(values), *_kinds(leaves))
        place = (key, torch.is_grad_enabled(), tuple(params), structure, kinds)
        if place in self._traced:
            outputs: Sequence[Tensor] = self._traced[place](values, leaves)
            return tuple(outputs)
        self._runs[place] += 1
        if self.graph == "replay" and self._traced and self._runs[place] <= PATIENCE:
            return function(params, episodes)

        def flat(values: Sequence[Tensor], leaves: list[Any]) -> list[Tensor]:
            given = dict(zip(params, values, strict=True))
            return list(function(given, tree_unflatten(leaves, structure)))

        try:
            traced, outputs = self._trace(flat, values, leaves)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            # Whatever the reason, the step itself can go on without a graph.
            self._refuse(f"{type(error).__name__}: {str(error).splitlines()[0]}")
            return function(params, episodes)
        plain = function(params, episodes)
        if not self._agree(outputs, plain, values):
            self._refuse("its losses or gradients differ from those without a graph")
            return plain
        self._traced[place] = traced
        return tuple(outputs)

    def _trace(
        self, flat: Callable[..., Any], values: list[Tensor], leaves: list[Any]
    ) -> tuple[Callable[..., Any], Sequence[Tensor]]:
        if self.graph == "replay":
            replayed = JointGraph(flat, values, leaves)
            return replayed, replayed(values, leaves)
        compiled = inductor_graph(flat)
        return compiled, traced_call(compiled, values, leaves)

    def _agree(
        self, one: Sequence[Tensor], other: Sequence[Tensor], values: Sequence[Tensor]
    ) -> bool:
        """Whether both ways to compute the losses give the same values and the same gradient.

        The gradient is that of the sum. A compiled graph may differ by the square root of the
        precision of the numbers' type.
        """
        for a, b in zip(_with_gradients(one, values), _with_gradients(other, values), strict=True):
            tolerance = 0.0
            if self.graph == "compile":
                tolerance = torch.finfo(b.dtype).eps ** 0.5
            scale = float(b.detach().abs().max()) if b.numel() else 0.0
            if not torch.allclose(a, b, rtol=tolerance, atol=tolerance * scale, equal_nan=True):
                return False
        return True

    def _refuse(self, reason: str) -> None:
        self.refusal = reason
        logger.warning(
            "train.graph: %s does not fit this training (%s), so its steps run without a graph.",
            self.graph,
            reason,
        )


def tracer_of(graph: str) -> Tracer | None:
    """A tracer for the value of `train.graph`; None where the value asks for no graph."""
    if graph == "replay":
        return Tracer("replay")
    if graph == "compile":
        return Tracer("compile")
    return None


def _kinds(tensors: Sequence[Any]) -> list[Hashable]:
    """The properties of each tensor that a graph is made for."""
    return [
        (each.shape, each.dtype, each.device, each.requires_grad, each.is_contiguous())
        for each in tensors
    ]


def _with_gradients(outputs: Sequence[Tensor], values: Sequence[Tensor]) -> list[Tensor]:
    """The outputs, then the gradient of their sum in each value that requires one."""
    followed = [each for each in outputs if each.requires_grad]
    leaves = [each for each in values if each.requires_grad]
    if not followed or not leaves:
        return list(outputs)
    total = torch.stack([each.sum() for each in followed]).sum()
    grads = torch.autograd.grad(total, leaves, retain_graph=True, allow_unused=True)
    zeros = zip(grads, leaves, strict=True)
    return [*outputs, *(torch.zeros_like(leaf) if grad is None else grad for grad, leaf in zeros)]
