"""A loop whose backward pass computes its steps again (gradient checkpointing: Chen et al., 2016,
arXiv:1604.06174).

The k steps are divided into segments of ceil(sqrt k). The forward pass keeps the state at the start
of each segment. The backward pass runs a segment again and keeps the state at the start of each of
its steps, then runs each step once more with its graph.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.autograd import Function
from torch.func import vjp
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from raymtl.types import Batch, Params

State = TypeVar("State")


def checkpointed(
    step: Callable[[State, Params, Batch, int], State],
    start: State,
    params: Params,
    support: Batch,
    steps: int,
) -> State:
    """The state after `steps` calls of `step(state, params, support, index)`, with its gradient.

    The gradient is exact. It reaches `start`, `params` and `support` alone, so `step` must not
    depend on any other tensor that it should reach. Unlike torch.utils.checkpoint, this is safe
    under vmap.
    """
    given, given_tree = tree_flatten((params, support))
    leaves, tree = tree_flatten(start)
    length = math.ceil(math.sqrt(steps))
    for first in range(0, steps, length):
        indices = range(first, min(first + length, steps))
        device = given[0].device.type
        if torch.is_autocast_enabled(device):
            precision = torch.get_autocast_dtype(device)
        else:
            precision = None
        segment = _Segment(step, indices, len(leaves), tree, given_tree, device, precision)
        leaves = list(_Segmented.apply(segment, *leaves, *given))
    state: State = tree_unflatten(leaves, tree)
    return state


class _Segment(NamedTuple):
    """Consecutive steps without their tensors, which pass through autograd one by one."""

    step: Callable[[Any, Params, Batch, int], Any]
    indices: range
    num_leaves: int
    tree: TreeSpec
    given_tree: TreeSpec
    device: str
    precision: torch.dtype | None
    """Of torch.autocast, None where it is off: going back, the steps run as they did."""

    def after(self, leaves: list[Tensor], given: list[Tensor], index: int) -> list[Tensor]:
        """The leaves of the state after one more step."""
        params, support = tree_unflatten(given, self.given_tree)
        # Its cache would keep casts of one transform's tensors for the next.
        with torch.autocast(
            self.device, self.precision, enabled=self.precision is not None, cache_enabled=False
        ):
            return tree_flatten(
                self.step(tree_unflatten(leaves, self.tree), params, support, index)
            )[0]


class _Segmented(Function):
    """(segment, leaves of the state, leaves of (params, support)) -> leaves of the next state."""

    generate_vmap_rule = True

    @staticmethod
    def forward(segment: _Segment, *tensors: Tensor) -> tuple[Tensor, ...]:
        leaves, given = list(tensors[: segment.num_leaves]), list(tensors[segment.num_leaves :])
        for index in segment.indices:
            leaves = segment.after(leaves, given, index)
        return tuple(leaves)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.segment, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        segment, tensors = ctx.segment, ctx.saved_tensors
        states, given = [list(tensors[: segment.num_leaves])], list(tensors[segment.num_leaves :])
        for index in segment.indices[:-1]:
            states.append(segment.after(states[-1], given, index))
        followed = [i for i, tensor in enumerate(given) if tensor.is_floating_point()]
        totals = [torch.zeros_like(given[i]) for i in followed]
        back = list(cotangents)
        for index in reversed(segment.indices):

            def after(
                leaves: list[Tensor], floats: list[Tensor], index: int = index
            ) -> list[Tensor]:
                merged = list(given)
                for i, value in zip(followed, floats, strict=True):
                    merged[i] = value
                leaves_after: list[Tensor] = segment.after(leaves, merged, index)
                return leaves_after

            pull = vjp(after, states.pop(), [given[i] for i in followed])[1]
            back, more = pull(back)
            totals = [total + extra for total, extra in zip(totals, more, strict=True)]
        gradients: list[Tensor | None] = [None] * len(given)
        for i, total in zip(followed, totals, strict=True):
            gradients[i] = total
        return None, *back, *gradients
