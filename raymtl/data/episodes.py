"""The seeded sampler: an episode is a function of (seed, split, step, index) and of nothing else."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from raymtl.data.base import SPLITS, Arrays, Source, Split
from raymtl.types import Batch, Episode


def generator(seed: int, split: Split, step: int, index: int) -> np.random.Generator:
    """A generator of its own for every episode, so that no worker's episodes depend on another's."""
    return np.random.default_rng([seed, SPLITS.index(split), step, index])


def build_episodes(
    source: Source, arrays: Arrays, *, seed: int, split: Split, step: int, indices: Sequence[int]
) -> tuple[Episode, list[str]]:
    """The episodes with these indices in the meta-batch of a step, stacked [E, ...], and their domains' names."""
    drawn = [source.episode(arrays, split, generator(seed, split, step, index)) for index in indices]
    episodes = [episode for episode, _ in drawn]
    return tree_map(lambda *leaves: torch.stack(leaves), *episodes), [domain for _, domain in drawn]


def with_labels_of(episodes: Episode, arrived: frozenset[str], counted: frozenset[str]) -> Episode:
    """The episodes with the support labels of `arrived` tasks and the query labels of `counted` tasks alone."""

    def hidden(batch: Batch, names: frozenset[str]) -> Batch:
        gone = {n: torch.zeros_like(t, dtype=torch.bool) for n, t in batch.targets.items() if n not in names}
        return batch._replace(masks={**batch.masks, **gone})

    return Episode(hidden(episodes.support, arrived), hidden(episodes.query, counted))


def on_device(episodes: Episode, device: torch.device | str) -> Episode:
    """Moves an episode to where it is computed, in the default precision; pictures, uint8, become [0, 1] there."""

    def move(leaf: Tensor) -> Tensor:
        leaf = leaf.to(device, non_blocking=True)
        if leaf.dtype == torch.uint8:
            return leaf.to(torch.get_default_dtype()) / 255
        return leaf.to(torch.get_default_dtype()) if leaf.is_floating_point() else leaf

    return tree_map(move, episodes)
