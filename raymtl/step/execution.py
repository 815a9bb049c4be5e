"""How the episodes of a meta-batch are run: by vmap or one by one, at once or in micro-batches."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch.func import vmap
from torch.utils._pytree import tree_map

from raymtl.step.workers import Workers
from raymtl.types import Episode, MetaBatch

Precision = Literal["float32", "bfloat16"]
TaskAxis = Literal["vmap", "loop"]


class ExecutionConfig(NamedTuple):
    """How the episodes of a batch are run. Every choice gives the same numbers up to rounding."""

    task_axis: TaskAxis = "vmap"
    chunk: int | None = None
    """How many episodes vmap takes at once; None for all of them."""
    precision: Precision = "float32"
    micro_batches: int = 1
    """Into how many micro-batches a worker divides its episodes, each with its own graph.

    More of them take less memory. Where the losses must be known before their weights, they cost
    one more forward pass.
    """


def over_episodes(
    function: Callable[[Episode], Any], episodes: MetaBatch, execution: ExecutionConfig
) -> Any:
    """The results of `function` for every episode, stacked: [E, ...].

    The results of several stacks of episodes are concatenated.
    """
    results = [_over_stack(function, stack, execution) for stack in stacks(episodes)]
    if len(results) == 1:
        return results[0]
    return tree_map(lambda *leaves: torch.cat(leaves), *results)


def _over_stack(
    function: Callable[[Episode], Any], episodes: Episode, execution: ExecutionConfig
) -> Any:
    device = next(iter(episodes.query.targets.values())).device
    with torch.autocast(device.type, torch.bfloat16, enabled=execution.precision == "bfloat16"):
        if execution.task_axis == "vmap":
            return vmap(function, chunk_size=execution.chunk)(episodes)
        results = []
        for index in range(count_episodes([episodes])):
            episode = tree_map(lambda leaf, index=index: leaf[index], episodes)
            results.append(function(episode))
        return tree_map(lambda *leaves: torch.stack(leaves), *results)


def stacks(episodes: MetaBatch) -> Sequence[Episode]:
    """The stacks that a meta-batch consists of."""
    if isinstance(episodes, Episode):
        return [episodes]
    return episodes


def count_episodes(episodes: Sequence[Episode]) -> int:
    """The number of episodes in all stacks."""
    return sum(len(next(iter(stack.query.targets.values()))) for stack in episodes)


def split_episodes(episodes: Sequence[Episode], micro_batches: int) -> list[Sequence[Episode]]:
    """The stacks divided into `micro_batches`; fewer where no stack has as many episodes.

    Each stack is divided by itself: micro-batch i holds the i-th shard of every stack.
    """
    if micro_batches == 1:
        return [episodes]
    batches: list[Sequence[Episode]] = []
    for index in range(micro_batches):
        shards = []
        for stack in episodes:
            indices = Workers(index, micro_batches).share(count_episodes([stack]))
            if indices:
                rows = slice(indices.start, indices.stop)
                shards.append(tree_map(lambda leaf, rows=rows: leaf[rows], stack))
        if shards:
            batches.append(shards)
    return batches
