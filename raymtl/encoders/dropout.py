"""Dropout (Srivastava et al., 2014, JMLR 15): y = m x / (1 - p), m in {0, 1}, P(m = 0) = p.

A mask is a function of (seed, step, episode, set, layer, place), by the counters of SplitMix64
(Steele et al., 2014, OOPSLA). Nothing is drawn in order, so it is the same on any number of
workers, under vmap and in a loop, when steps are computed again, and in a graph that is replayed.
All inner steps of an episode have the same masks: an inner loop minimises one function.

Deviation from the paper: of pictures whole maps are dropped (Tompson et al., 2015,
arXiv:1411.4280), since neighbouring pixels say the same.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from raymtl.types import Episode, Params

KEY = "dropout.key"
"""The key of the counter among the parameters, int64; without it nothing is dropped."""
QUERY = 1
"""What is added to the counter of an episode for its query set."""

Share = Annotated[float, Field(ge=0, lt=1)]

GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15, as all below of 64 bits with a sign
FIRST = -4658895280553007687  # 0xBF58476D1CE4E5B9
SECOND = -7723592293110705685  # 0x94D049BB133111EB
MOST_NUMBERS = 1 << 16
"""Of an episode's inputs, evenly spaced, by which it is told from others."""

_key: ContextVar[Tensor | None] = ContextVar("key", default=None)


class Dropout(nn.Module):
    """Drops numbers of [N, C], or maps of [N, C, height, width], inside of `dropping` alone."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p, self.layer = p, 0

    def extra_repr(self) -> str:
        return f"p={self.p}"

    def shape(self, x: Tensor) -> tuple[int, ...]:
        """Of the mask."""
        return (*x.shape[:2], *[1] * (x.ndim - 2))

    def forward(self, x: Tensor) -> Tensor:
        key = _key.get()
        if key is None or not self.p:
            return x
        return x * (kept(key, self.layer, self.shape(x), self.p).to(x.dtype) / (1 - self.p))


class DropResidual(Dropout):
    """Drops the residual of whole examples (Huang et al., 2016, arXiv:1603.09382)."""

    def shape(self, x: Tensor) -> tuple[int, ...]:
        return (len(x), *[1] * (x.ndim - 1))


def kept(key: Tensor, layer: int, shape: tuple[int, ...], p: float) -> Tensor:
    """Which places of this shape stay, for a layer and a counter (a scalar, int64)."""
    state = _mixed(key + (layer + 1) * GOLDEN % 2**62)
    place = torch.arange(math.prod(shape), device=key.device).view(shape)
    uniform = _shifted(_mixed(state + place * GOLDEN), 11)  # of 53 bits
    return uniform >= round(p * 2**53)


def dropouts(modules: Iterable[nn.Module]) -> list[Dropout]:
    """Those of the modules that drop something."""
    return [module for module in modules if isinstance(module, Dropout)]


def number_layers(modules: Iterable[nn.Module]) -> None:
    """Gives every layer masks of its own."""
    for number, layer in enumerate(dropouts(modules)):
        layer.layer = number


@contextmanager
def dropping(params: Params) -> Iterator[None]:
    """Inside, layers drop by the counter among the parameters; nothing where there is none."""
    token = _key.set(params.get(KEY))
    try:
        yield
    finally:
        _key.reset(token)


def step_key(seed: int, step: int, device: torch.device) -> Tensor:
    """The counter of an outer step, a scalar."""
    state = _mixed(torch.tensor(seed, device=device) * GOLDEN)
    return _mixed(state + torch.tensor(step, device=device) * GOLDEN)


def of_episode(params: Params, episode: Episode) -> Params:
    """The parameters with the counter of an episode, of those of a step.

    The episode is known by the numbers of its inputs, which are the same on whichever worker.
    """
    if KEY not in params:
        return params
    key = params[KEY]
    for batch in (episode.support, episode.query):
        for inputs in tree_leaves(batch.inputs):
            key = _mixed(key + _digest(inputs))
    return {**params, KEY: key}


def of_query(params: Mapping[str, Tensor], drawn: Params) -> Params:
    """Adapted parameters with the counter of the query set; `drawn` has that of the episode."""
    if KEY not in drawn:
        return params
    return {**params, KEY: drawn[KEY] + QUERY}


def _digest(inputs: Tensor) -> Tensor:
    """A number of 64 bits that other inputs [N, ...] do not have, a scalar."""
    flat = inputs.detach().flatten(1)
    apart = max(1, math.ceil(flat.numel() / MOST_NUMBERS))
    some = flat[:, ::apart]
    if some.is_floating_point():
        bits = {4: torch.int32, 8: torch.int64}[some.element_size()]
        some = some.view(bits)
    place = torch.arange(some.numel(), device=some.device).view(some.shape)
    return (some.long() * _mixed(place * GOLDEN)).sum()


def _mixed(z: Tensor) -> Tensor:
    """SplitMix64's bijection of 64 bits; int64 wraps around."""
    z = (z ^ _shifted(z, 30)) * FIRST
    z = (z ^ _shifted(z, 27)) * SECOND
    return z ^ _shifted(z, 31)


def _shifted(z: Tensor, by: int) -> Tensor:
    """To the right, with zeros from the left."""
    return (z >> by) & ((1 << (64 - by)) - 1)
