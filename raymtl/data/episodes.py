"""The seeded sampler: an episode is a function of (seed, split, step, index) and of nothing else."""

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

from raymtl.data.base import SPLITS, Arrays, Source, Split
from raymtl.types import Batch, Episode, MetaBatch

Episodes = TypeVar("Episodes", bound=MetaBatch)


def generator(seed: int, split: Split, step: int, index: int) -> np.random.Generator:
    """A generator of its own for every episode, so that no worker's episodes depend on another's."""
    return np.random.default_rng([seed, SPLITS.index(split), step, index])


def build_episodes(
    source: Source, arrays: Arrays, *, seed: int, split: Split, step: int, indices: Sequence[int]
) -> tuple[tuple[Episode, ...], list[str]]:
    """The episodes with these indices in the meta-batch of a step, in buckets, and their domains' names in that order.

    A bucket is a stack [E, ...] of the episodes that are alike in their tasks and their numbers of examples.
    """
    arrays = source.window(arrays, split, seed, step)
    drawn = [source.episode(arrays, split, generator(seed, split, step, index)) for index in indices]
    buckets: dict[Any, list[tuple[Episode, str]]] = {}
    for episode, domain in drawn:
        leaves, structure = tree_flatten(episode)
        # As text: the shapes say what can be stacked, the structure which tasks there are.
        kind = (str(structure), *((leaf.shape, leaf.dtype) for leaf in leaves))
        buckets.setdefault(kind, []).append((episode, domain))
    stacks = tuple(
        tree_map(lambda *leaves: torch.stack(leaves), *(episode for episode, _ in alike)) for alike in buckets.values()
    )
    return stacks, [domain for alike in buckets.values() for _, domain in alike]


def with_labels_of(episodes: MetaBatch, arrived: frozenset[str], counted: frozenset[str]) -> MetaBatch:
    """The episodes with the support labels of `arrived` tasks and the query labels of `counted` tasks alone."""
    if not isinstance(episodes, Episode):
        return tuple(_with_labels_of(stack, arrived, counted) for stack in episodes)
    return _with_labels_of(episodes, arrived, counted)


def _with_labels_of(episodes: Episode, arrived: frozenset[str], counted: frozenset[str]) -> Episode:

    def hidden(batch: Batch, names: frozenset[str]) -> Batch:
        gone = {n: t.new_zeros(t.shape[:2], dtype=torch.bool) for n, t in batch.targets.items() if n not in names}
        return batch._replace(masks={**batch.masks, **gone})

    return Episode(hidden(episodes.support, arrived), hidden(episodes.query, counted))


def on_device(episodes: Episodes, device: torch.device | str) -> Episodes:
    """Moves episodes to where it is computed, in the default precision; pictures, uint8, become [0, 1] there."""

    def move(leaf: Tensor) -> Tensor:
        leaf = leaf.to(device, non_blocking=True)
        if leaf.dtype == torch.uint8:
            return leaf.to(torch.get_default_dtype()) / 255
        return leaf.to(torch.get_default_dtype()) if leaf.is_floating_point() else leaf

    moved: Episodes = tree_map(move, episodes)
    return moved
