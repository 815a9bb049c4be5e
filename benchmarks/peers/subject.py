"""What a subject of the comparison is made of."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.peers.timing import Way

PARITY = 1e-9
"""The largest difference of a peer's gradient, to the largest entry of raymtl's, in float64."""


class Setting(NamedTuple):
    """What holds for all subjects of a run."""

    device: str = "cpu"
    ours: bool = False
    """No other library takes part."""
    alone: str | None = None
    """The only way that is to run, so that its memory can be measured; nothing else runs before.

    Peers that take one task after the other then get all tasks of the meta-batch. To be timed they
    get a few, for a task takes the same time.
    """
    quick: bool = False
    """Tiny sizes, to see that everything runs."""


class Contest(NamedTuple):
    """The ways to do one thing, ready to run."""

    ways: Mapping[str, Way]
    base: str
    """The way of raymtl that a training takes."""
    gigaflop: float | None = None
    """Operations that a unit needs; None where they are not what takes the time."""
    with_peaks: Sequence[str] = ()
    """The ways whose memory is measured."""


class Subject(NamedTuple):
    """One table of the results."""

    name: str
    unit: str
    """What the times are of, such as `task`."""
    contest: Callable[[Setting], Contest]
    gradients: Callable[[Setting], Mapping[str, Sequence[Tensor]]] | None = None
    """Gradients of every way that computes the same thing, on a few tasks; raymtl's first."""


def parity(subject: Subject, setting: Setting) -> dict[str, float]:
    """How far the peers' gradients are from raymtl's in float64, to raymtl's largest entry."""
    if subject.gradients is None:
        return {}
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        every = dict(subject.gradients(setting))
    finally:
        torch.set_default_dtype(before)
    ours, *others = every
    scale = max(float(each.abs().max()) for each in every[ours])
    gaps = {}
    for name in others:
        pairs = zip(every[name], every[ours], strict=True)
        gap = max(float((one.flatten() - two.flatten()).abs().max()) for one, two in pairs)
        gaps[name] = gap / scale
    return gaps
