"""How the episodes of a meta-batch are run: by vmap or one by one, at once or in micro-batches."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.func import vmap
from torch.utils._pytree import tree_leaves, tree_map

from raymtl.step.traced import Tracer
from raymtl.step.workers import Workers
from raymtl.types import Batch, Episode, MetaBatch, Params

Precision = Literal["float32", "bfloat16"]
TaskAxis = Literal["vmap", "loop", "rows"]
"""How episodes are run; `rows` puts the query sets of all of them into one, for learners that read
no support set.
"""


class ExecutionConfig(NamedTuple):
    """How a worker runs its episodes. Every choice gives the same numbers up to rounding."""

    task_axis: TaskAxis = "vmap"
    chunk: int | None = None
    """The number of episodes that vmap, or `rows`, takes at once; None for all of them."""
    precision: Precision = "float32"
    micro_batches: int = 1
    """The number of parts into which a worker divides its episodes, each with its own graph.

    More of them need less memory. They cost one more forward pass where the weights depend on the
    losses of all episodes.
    """
    graph_mb: float | None = None
    """The most memory, in MiB, that graphs may take while the weights of the losses are not known.

    Where an estimate exceeds it, the losses are first computed without graphs. Then they are
    computed again, one piece after the other, with graphs. None for no limit.
    """
    tracer: Tracer | None = None
    """The graphs that stand for the query losses; None to run them as they are written."""

    channels_last: bool = True
    """Whether pictures and weights may be laid out anew in memory."""

    def uses_channels_last(self, device: torch.device) -> bool:
        """Whether pictures and weights of convolutions lie in memory with their channels last.

        A CPU convolves them faster then, but not those of several episodes at once.
        """
        return self.channels_last and self.task_axis != "vmap" and device.type == "cpu"


WEIGHTS_PER_NUMBER = 32
"""With more weights of convolutions than this for each number of an episode's pictures, laying them
out anew takes longer than a convolution gains by it.
"""


def suited_to(execution: ExecutionConfig, params: Params, episodes: MetaBatch) -> ExecutionConfig:
    """Returns the execution, without channels-last layout where the pictures are too few for it."""
    weights = sum(value.numel() for value in params.values() if value.ndim == 4)
    if not weights or not execution.channels_last:
        return execution
    first = slice(1)
    if execution.task_axis == "rows":
        first = slice(None)
    numbers = [
        leaf[first].numel()
        for stack in stacks(episodes)
        for leaf in tree_leaves(stack.query.inputs)
    ]
    return execution._replace(channels_last=weights <= WEIGHTS_PER_NUMBER * max(numbers))


def laid_out(params: Params, execution: ExecutionConfig) -> Params:
    """Returns copies of the parameters as leaves, in the memory layout that the execution uses."""
    if not execution.uses_channels_last(next(iter(params.values())).device):
        return params
    return {name: _laid_out_weight(value) for name, value in params.items()}


def _laid_out_weight(value: Tensor) -> Tensor:
    if value.ndim != 4 or value.shape[1] == 1:  # of one channel both layouts are the same
        return value
    laid_out = value.detach().contiguous(memory_format=torch.channels_last)
    return laid_out.requires_grad_(value.requires_grad)


def _with_channels_last(batch: Batch) -> Batch:
    """The batch of stacked pictures [E, N, C, H, W] with C last in memory; others as they are."""

    def laid_out(inputs: Tensor) -> Tensor:
        if inputs.ndim != 5:
            return inputs
        _, num, channels, height, width = inputs.shape
        last = inputs.movedim(2, -1).contiguous()
        # By hand: of a single channel movedim would keep the strides of channels first.
        size = channels * height * width
        strides = (num * size, size, 1, width * channels, channels)
        return last.as_strided(inputs.shape, strides)

    inputs: Tensor | Mapping[str, Tensor] = tree_map(laid_out, batch.inputs)
    return batch._replace(inputs=inputs)


def over_episodes(
    function: Callable[[Episode], Any], episodes: MetaBatch, execution: ExecutionConfig
) -> Any:
    """Calls `function` for every episode and returns the results stacked, [E, ...].

    It is called under vmap or in a loop, as the execution says. By `rows` it is called for all
    query sets together, or for those of `chunk` episodes, and E is the number of calls. The results
    of several stacks of episodes are concatenated in their order.
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
        if execution.uses_channels_last(device):
            episodes = episodes._replace(
                support=_with_channels_last(episodes.support),
                query=_with_channels_last(episodes.query),
            )
        results = [function(episode) for episode in _one_by_one(episodes, execution)]
        return tree_map(lambda *leaves: torch.stack(leaves), *results)


def _one_by_one(episodes: Episode, execution: ExecutionConfig) -> Iterator[Episode]:
    """The episodes of a stack, or by `rows` those that are made of several of them."""
    if execution.task_axis == "loop":
        for index in range(count_episodes([episodes])):
            yield tree_map(lambda leaf, index=index: leaf[index], episodes)
        return
    for (piece,) in pieces_at_once([episodes], execution):
        yield tree_map(lambda leaf: leaf.flatten(0, 1), piece)


def stacks(episodes: MetaBatch) -> Sequence[Episode]:
    """The stacks that a meta-batch consists of."""
    if isinstance(episodes, Episode):
        return [episodes]
    return episodes


def count_episodes(episodes: Sequence[Episode]) -> int:
    """The number of episodes in all stacks."""
    return sum(len(next(iter(stack.query.targets.values()))) for stack in episodes)


def pieces_at_once(
    episodes: Sequence[Episode], execution: ExecutionConfig
) -> list[Sequence[Episode]]:
    """The stacks cut into what runs at once: one episode in a loop, otherwise a chunk of them."""
    if execution.task_axis == "loop":
        size: int | None = 1
    else:
        size = execution.chunk
    if size is None:
        return [episodes]
    pieces: list[Sequence[Episode]] = []
    for stack in episodes:
        for start in range(0, count_episodes([stack]), size):
            rows = slice(start, start + size)
            pieces.append([tree_map(lambda leaf, rows=rows: leaf[rows], stack)])
    return pieces or [episodes]


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
