"""Confidence intervals of scores by the delete-a-group jackknife.

The units that were sampled from the world (rows, patients, classes, domains) are divided into G
groups. The score is computed without each group in turn, and its changes give the variance (Tukey,
1958; Kott, 2001, Journal of Official Statistics 17(4)):

    V = (G - 1) / G * sum over groups g of (score without g - score)^2

This works for every score, because a score is a function of sums over examples. Two models that are
scored on the same rows have the same groups. So their difference, and every other function of
scores, has an interval too.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

CONFIDENCE = 0.95
Range = Literal["unit", "positive", "at_most_one", "any"]
"""Values that a score can have: from 0 to 1, at least 0, at most 1 (R2), or any."""


class Partition(NamedTuple):
    """A score without each of G groups of examples, and how the groups overlap."""

    left_out: np.ndarray
    """The score without each group, [G]; nan where it has none."""
    shares: np.ndarray
    """The share of the labelled examples that is in each group, [G]; an example may be in several
    groups.
    """

    @property
    def overlap(self) -> float:
        """How often this partition counts the variance of independent examples: once if no example
        is in two groups and groups are small.
        """
        inside = self.shares[(self.shares > 0) & (self.shares < 1)]
        return float((1 / (1 - inside) - 1).sum())


class Estimator(NamedTuple):
    """A score, and its values without groups of examples, by the name of the partition.

    The partitions `examples` and `episodes` exist for a model that adapts, because its support sets
    are random. All other partitions are populations that were sampled from the world. `whole` names
    those of which an episode takes all its examples from the same members, such as classes.
    """

    value: float
    partitions: Mapping[str, Partition]
    whole: frozenset[str] = frozenset()

    def variance(self) -> tuple[float, float]:
        """The variance of the score and its degrees of freedom; nan if it cannot be computed.

        Examples of one episode share their support set, and those of one row, patient or class are
        alike. Each partition adds the variance that exceeds what independent examples, or episodes,
        would show in it.
        """
        found = {name: _spread(self.value, part) for name, part in self.partitions.items()}
        parts: list[tuple[float, float]] = []
        drawn, episodes = found.get("examples"), found.get("episodes")
        if drawn is not None:
            parts.append(drawn)
        if drawn is not None and episodes is not None:
            parts.append(_beyond(episodes, self.partitions["episodes"].overlap * drawn[0]))
        for name, own in found.items():
            if name in ("examples", "episodes"):
                continue
            if name in self.whole:
                finer = episodes
            else:
                finer = drawn
            parts.append(_beyond(own, self.partitions[name].overlap * finer[0] if finer else 0.0))
        total = sum(variance for variance, _ in parts)
        if not parts or math.isnan(total):
            return math.nan, math.nan
        weights = sum(variance**2 / degrees for variance, degrees in parts if variance > 0)
        # Satterthwaite's degrees of freedom of a sum of variances.
        return total, total**2 / weights if weights else parts[-1][1]

    def interval(self, kind: Range) -> dict[str, float | None]:
        """`mean`, the ends `low` and `high` of the 95 % interval, and `ci95`, half its width; None
        if unknown.

        A score from 0 to 1 has Wilson's interval with the number of independent examples that has
        its variance; errors and R2 have theirs on a logarithmic scale.
        """
        if math.isnan(self.value):
            return {"mean": None, "ci95": None, "low": None, "high": None}
        variance, degrees = self.variance()
        if math.isnan(variance):
            return {"mean": self.value, "ci95": None, "low": None, "high": None}
        populations = [
            part for name, part in self.partitions.items() if name not in ("examples", "episodes")
        ]
        number = min((int((part.shares > 0).sum()) for part in populations), default=1)
        low, high = _ends(self.value, variance, _quantile(degrees), kind, max(number, 1))
        return {"mean": self.value, "ci95": (high - low) / 2, "low": low, "high": high}


def combine(
    function: Callable[[Sequence[np.ndarray]], np.ndarray], scores: Sequence[Estimator]
) -> Estimator:
    """A function of several scores on the same groups, such as their mean or difference.

    A score that lacks a partition does not change when its groups are left out. If one score has
    fewer groups, the groups of the others are merged.
    """
    names = dict.fromkeys(name for score in scores for name in score.partitions)
    partitions = {}
    for name in names:
        groups = min(
            len(score.partitions[name].left_out) for score in scores if name in score.partitions
        )
        own = [_joined(score, name, groups) for score in scores]
        shares = np.mean([part.shares for part in own if part.shares.any()], axis=0)
        partitions[name] = Partition(function([part.left_out for part in own]), shares)
    value = float(function([np.array(score.value) for score in scores]))
    return Estimator(value, partitions, frozenset().union(*(score.whole for score in scores)))


def _joined(score: Estimator, name: str, groups: int) -> Partition:
    """The partition with so many groups: each of them joins those whose numbers leave the same
    rest.
    """
    if name not in score.partitions:
        return Partition(np.full(groups, score.value), np.zeros(groups))
    part = score.partitions[name]
    if len(part.left_out) == groups:
        return part
    rest = np.arange(len(part.left_out)) % groups
    # What two groups do together is nearly the sum of what each does.
    moved = np.bincount(rest, part.left_out - score.value, groups)
    return Partition(score.value + moved, np.bincount(rest, part.shares, groups))


def _spread(value: float, part: Partition) -> tuple[float, float]:
    """The jackknife's variance and its degrees of freedom: fewer where some groups are much larger
    than others.
    """
    known = part.shares > 0
    moved, shares = (part.left_out - value)[known], part.shares[known]
    groups = len(moved)
    if groups < 2 or np.isnan(moved).any():
        return math.nan, math.nan
    equal = float(shares.sum() ** 2 / np.square(shares).sum())
    return (groups - 1) / groups * float(np.square(moved).sum()), max(equal - 1, 1.0)


def _beyond(own: tuple[float, float], expected: float) -> tuple[float, float]:
    return max(own[0] - expected, 0.0) if not math.isnan(own[0]) else math.nan, own[1]


def _quantile(degrees: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(degrees, (1 + CONFIDENCE) / 2))


def _ends(
    value: float, variance: float, times: float, kind: Range, number: int
) -> tuple[float, float]:
    error = math.sqrt(variance)
    if kind == "unit" and 0 <= value <= 1:
        binomial = value * (1 - value)
        if variance > 0 and binomial > 0:
            independent = binomial / variance
        else:
            independent = number
        above = times**2 / independent
        middle = (value + above / 2) / (1 + above)
        half = (
            times
            / (1 + above)
            * math.sqrt(binomial / independent + times**2 / (4 * independent**2))
        )
        return middle - half, middle + half
    if kind == "positive" and value > 0:
        factor = math.exp(min(times * error / value, 700))
        return value / factor, value * factor
    if kind == "at_most_one" and value < 1:
        factor = math.exp(min(times * error / (1 - value), 700))
        return 1 - (1 - value) * factor, 1 - (1 - value) / factor
    return value - times * error, value + times * error
