"""The seeded sampler: an episode is a function of (seed, split, step, index) alone."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

from raymtl.data.base import SPLITS, Arrays, Bucket, Source, Split
from raymtl.data.draws import Draws
from raymtl.types import Batch, Episode, MetaBatch

Examples = TypeVar("Examples", bound=MetaBatch | Batch)


def generators(seed: int, split: Split, step: int, indices: Sequence[int]) -> Draws:
    """The generators of these episodes, so that no episode depends on which others are drawn."""
    return Draws.of_episodes([seed, SPLITS.index(split), step], indices)


def build_meta_batch(
    source: Source,
    arrays: Arrays,
    *,
    seed: int,
    step: int,
    indices: Sequence[int],
    meta_batch: int,
) -> tuple[Episode, ...]:
    """The episodes for training with these indices, of the `meta_batch` ones of a step, in stacks
    [E, ...] of those that are alike in their tasks and their numbers of examples.
    """
    places = {index: place for place, index in enumerate(indices)}
    buckets: list[Bucket] = []
    for lane, own in _by_lane(source, indices, meta_batch):
        window = source.window(arrays, "train", seed, step, lane)
        draws = generators(seed, "train", step, own)
        buckets += source.draw_episodes(window, "train", draws)
    return tuple(bucket.episodes for bucket in _in_order(buckets, places))


def _by_lane(
    source: Source, indices: Sequence[int], meta_batch: int
) -> Iterator[tuple[int, Sequence[int]]]:
    """The lanes of some episodes, each with those that belong to it.

    Lanes are contiguous and their sizes differ by one at most, as shards are. So a worker has whole
    lanes where the number of workers divides that of lanes.
    """
    if source.lanes == 1 or not source.is_streamed:
        yield 0, indices
        return
    ends = [meta_batch * (lane + 1) // source.lanes for lane in range(source.lanes)]
    lanes = np.searchsorted(ends, indices, side="right")
    for lane in np.unique(lanes).tolist():
        yield lane, np.asarray(indices)[lanes == lane].tolist()


def build_episodes(
    source: Source, arrays: Arrays, *, seed: int, split: Split, step: int, indices: Sequence[int]
) -> tuple[tuple[Episode, ...], list[str]]:
    """The meta-batch in its stacks, and the names of the episodes' domains in that order."""
    buckets = build_buckets(source, arrays, seed=seed, split=split, step=step, indices=indices)
    domains = [domain for bucket in buckets for domain in bucket.domains()]
    return tuple(bucket.episodes for bucket in buckets), domains


def build_buckets(
    source: Source, arrays: Arrays, *, seed: int, split: Split, step: int, indices: Sequence[int]
) -> list[Bucket]:
    """The episodes with these indices in the meta-batch of a step.

    Buckets are in the order of their first episodes.
    """
    arrays = source.window(arrays, split, seed, step)
    draws = generators(seed, split, step, indices)
    places = {index: place for place, index in enumerate(indices)}
    return _in_order(source.draw_episodes(arrays, split, draws), places)


def _in_order(buckets: Iterable[Bucket], places: Mapping[int, int]) -> list[Bucket]:
    """Each kind of episodes in one bucket, in the order of their first episodes."""
    return sorted(_merged(buckets, places), key=lambda bucket: places[int(bucket.indices[0])])


def _merged(buckets: Iterable[Bucket], places: Mapping[int, int]) -> list[Bucket]:
    """Each kind of episodes in one bucket, in the order of their places in the meta-batch."""
    every = list(buckets)
    if len(every) == 1:
        return every
    kinds: dict[Any, list[Bucket]] = {}
    for bucket in every:
        kinds.setdefault(_kind(bucket.episodes), []).append(bucket)
    return [_concatenated(one_kind, places) for one_kind in kinds.values()]


def _kind(stack: Episode) -> Any:
    """Equal for stacks whose episodes can be in one stack."""
    leaves, structure = tree_flatten(stack)
    # As text: the shapes say what can be stacked, the structure which tasks there are.
    return (str(structure), *((leaf.shape[1:], leaf.dtype) for leaf in leaves))


def join_shares(shares: Sequence[tuple[Episode, ...]]) -> tuple[Episode, ...]:
    """The stacks of the share that these shares, which follow each other, are together.

    Equal to the bit to what `build_meta_batch` makes of all their episodes at once.
    """
    if len(shares) == 1:
        return shares[0]
    kinds: dict[Any, list[Episode]] = {}
    for stack in chain.from_iterable(shares):
        kinds.setdefault(_kind(stack), []).append(stack)
    joined = (tree_map(lambda *leaves: torch.cat(leaves), *stacks) for stacks in kinds.values())
    return tuple(joined)


def _concatenated(buckets: Sequence[Bucket], places: Mapping[int, int]) -> Bucket:
    if len(buckets) == 1:
        return buckets[0]
    indices = np.concatenate([bucket.indices for bucket in buckets])
    order = np.argsort([places[index] for index in indices.tolist()])
    rows = torch.from_numpy(order)

    def domains() -> list[str]:
        names = list(chain.from_iterable(bucket.domains() for bucket in buckets))
        return [names[row] for row in order]

    stacks = [bucket.episodes for bucket in buckets]
    episodes = tree_map(lambda *leaves: torch.cat(leaves).index_select(0, rows), *stacks)
    return Bucket(episodes, indices[order], domains)


def with_labels_of(
    episodes: MetaBatch, support_tasks: frozenset[str], query_tasks: frozenset[str]
) -> MetaBatch:
    """The episodes with the labels of `support_tasks` in support and of `query_tasks` in query.

    All other labels are masked.
    """
    if not isinstance(episodes, Episode):
        return tuple(_with_labels_of(stack, support_tasks, query_tasks) for stack in episodes)
    return _with_labels_of(episodes, support_tasks, query_tasks)


def _with_labels_of(
    episodes: Episode, support_tasks: frozenset[str], query_tasks: frozenset[str]
) -> Episode:

    def hidden(batch: Batch, names: frozenset[str]) -> Batch:
        gone = {
            n: t.new_zeros(t.shape[:2], dtype=torch.bool)
            for n, t in batch.targets.items()
            if n not in names
        }
        return batch._replace(masks={**batch.masks, **gone})

    return Episode(hidden(episodes.support, support_tasks), hidden(episodes.query, query_tasks))


def on_device(episodes: Examples, device: torch.device | str) -> Examples:
    """Moves episodes, or a batch, to where it is computed, in the default precision.

    Pictures, uint8, become [0, 1] there. Labels in float64 stay so: their task standardises them
    before it rounds.
    """
    moved: Any
    if isinstance(episodes, Batch):
        targets = {
            name: _moved(target, device, keep=torch.float64)
            for name, target in episodes.targets.items()
        }
        masks = {name: mask.to(device, non_blocking=True) for name, mask in episodes.masks.items()}
        moved = Batch(_moved_inputs(episodes.inputs, device), targets, masks)
    elif isinstance(episodes, Episode):
        moved = Episode(on_device(episodes.support, device), on_device(episodes.query, device))
    else:
        moved = tuple(on_device(stack, device) for stack in episodes)
    result: Examples = moved
    return result


def _moved_inputs(
    inputs: Tensor | Mapping[str, Tensor], device: torch.device | str
) -> Tensor | dict[str, Tensor]:
    if isinstance(inputs, Tensor):
        return _moved(inputs, device)
    return {name: _moved(own, device) for name, own in inputs.items()}


def _moved(leaf: Tensor, device: torch.device | str, keep: torch.dtype | None = None) -> Tensor:
    leaf = leaf.to(device, non_blocking=True)
    if leaf.dtype == torch.uint8:
        return leaf.to(torch.get_default_dtype()).div_(255)
    rounded = leaf.is_floating_point() and leaf.dtype != keep
    if rounded:
        return leaf.to(torch.get_default_dtype())
    return leaf
