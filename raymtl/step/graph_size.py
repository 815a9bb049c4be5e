"""The memory that the graphs of a step take, estimated from what one example passes through.

It depends on shapes alone, so a resumed training decides by the same number.
"""

from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves, tree_map

from raymtl.sharing import SharingArchitecture
from raymtl.step.algorithm import Algorithm
from raymtl.types import Episode, Params, select

_BYTES: WeakKeyDictionary[SharingArchitecture, dict[Any, int]] = WeakKeyDictionary()


def graph_megabytes(algorithm: Algorithm, params: Params, episodes: Sequence[Episode]) -> float:
    """Estimates the memory of the graphs of all these episodes together, in MiB.

    An inner step counts as three forward passes: itself, and its backward pass, which is
    differentiated again.
    """
    total = 0
    for stack in episodes:
        num_episodes, num_query = _sizes(stack.query.inputs)
        _, num_support = _sizes(stack.support.inputs)
        passes = num_query + 3 * algorithm.learner.num_steps * num_support
        total += num_episodes * passes * _bytes_per_example(algorithm, params, stack.query.inputs)
    return total / 2**20


def _sizes(inputs: Tensor | Mapping[str, Tensor]) -> tuple[int, int]:
    """The number of episodes and the largest number of examples in one."""
    shapes = [leaf.shape for leaf in tree_leaves(inputs)]
    return shapes[0][0], max(shape[1] for shape in shapes)


def _bytes_per_example(
    algorithm: Algorithm, params: Params, inputs: Tensor | Mapping[str, Tensor]
) -> int:
    """The outputs of all layers for one example, or for one of each task."""
    example = tree_map(lambda leaf: leaf[0, :1], inputs)
    known = _BYTES.setdefault(algorithm.model, {})
    key = tuple(leaf.shape for leaf in tree_leaves(example))
    if key not in known:
        known[key] = _count_bytes(algorithm.model, select(params, "model"), example)
    return known[key]


def _count_bytes(model: SharingArchitecture, params: Params, example: Any) -> int:
    sizes: list[int] = []

    def count(module: nn.Module, inputs: Any, output: Any) -> None:
        sizes.extend(leaf.nbytes for leaf in tree_leaves(output) if isinstance(leaf, Tensor))

    layers = [module for module in model.modules() if not list(module.children())]
    handles = [module.register_forward_hook(count) for module in layers]
    try:
        with torch.no_grad():
            functional_call(model, dict(params), (example,))
    finally:
        for handle in handles:
            handle.remove()
    return sum(sizes)
