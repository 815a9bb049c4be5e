"""Single episodes of a source, as they stand in a meta-batch."""

from torch.utils._pytree import tree_map

from raymtl.data.base import Arrays, Source, Split
from raymtl.data.episodes import build_episodes
from raymtl.types import Episode


def one_episode(
    source: Source, arrays: Arrays, split: Split, index: int, *, seed: int = 0, step: int = 0
) -> tuple[Episode, str]:
    """The episode with this index, without the axis of episodes, and its domain's name."""
    (stack,), (domain,) = build_episodes(
        source, arrays, seed=seed, split=split, step=step, indices=[index]
    )
    return tree_map(lambda leaf: leaf[0], stack), domain
