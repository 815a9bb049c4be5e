"""The seeded sampler: an episode is a function of (seed, split, step, index) alone."""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

from raymtl.data.base import SPLITS, Arrays, Source, Split
from raymtl.types import Batch, Episode, MetaBatch

Examples = TypeVar("Examples", bound=MetaBatch | Batch)


def generator(seed: int, split: Split, step: int, index: int) -> np.random.Generator:
    """The generator of one episode, so that no worker's episodes depend on another's."""
    return np.random.default_rng([seed, SPLITS.index(split), step, index])


def build_episodes(
    source: Source, arrays: Arrays, *, seed: int, split: Split, step: int, indices: Sequence[int]
) -> tuple[tuple[Episode, ...], list[str]]:
    """The episodes with these indices in the meta-batch of a step, in buckets, and their domains'
    names in that order.

    A bucket is a stack [E, ...] of the episodes that are alike in their tasks and their numbers of
    examples.
    """
    buckets = build_buckets(source, arrays, seed=seed, split=split, step=step, indices=indices)
    domains = [domain for bucket in buckets for domain in bucket.domains]
    return tuple(bucket.episodes for bucket in buckets), domains


class Bucket(NamedTuple):
    """Episodes that are alike in their tasks and their numbers of examples."""

    episodes: Episode
    """A stack [E, ...]."""
    domains: Sequence[str]
    indices: Sequence[int]
    """Which episodes of the meta-batch they are."""


def build_buckets(
    source: Source, arrays: Arrays, *, seed: int, split: Split, step: int, indices: Sequence[int]
) -> list[Bucket]:
    """The episodes with these indices in the meta-batch of a step."""
    arrays = source.window(arrays, split, seed, step)
    alike: dict[Any, list[tuple[Episode, str, int]]] = {}
    for index in indices:
        episode, domain = source.episode(arrays, split, generator(seed, split, step, index))
        leaves, structure = tree_flatten(episode)
        # As text: the shapes say what can be stacked, the structure which tasks there are.
        kind = (str(structure), *((leaf.shape, leaf.dtype) for leaf in leaves))
        alike.setdefault(kind, []).append((episode, domain, index))
    buckets = []
    for drawn in alike.values():
        episodes, domains, numbers = zip(*drawn, strict=True)
        buckets.append(
            Bucket(tree_map(lambda *leaves: torch.stack(leaves), *episodes), domains, numbers)
        )
    return buckets


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
        labels = tree_map(
            lambda leaf: _moved(leaf, device, keep=torch.float64),
            (episodes.targets, episodes.masks),
        )
        moved = Batch(tree_map(lambda leaf: _moved(leaf, device), episodes.inputs), *labels)
    elif isinstance(episodes, Episode):
        moved = Episode(on_device(episodes.support, device), on_device(episodes.query, device))
    else:
        moved = tuple(on_device(stack, device) for stack in episodes)
    result: Examples = moved
    return result


def _moved(leaf: Tensor, device: torch.device | str, keep: torch.dtype | None = None) -> Tensor:
    leaf = leaf.to(device, non_blocking=True)
    if leaf.dtype == torch.uint8:
        return leaf.to(torch.get_default_dtype()) / 255
    rounded = leaf.is_floating_point() and leaf.dtype != keep
    if rounded:
        return leaf.to(torch.get_default_dtype())
    return leaf
