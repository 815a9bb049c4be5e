"""Functions of one number: families of them, and what the sources that draw episodes from these
have in common.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from pydantic import NonNegativeFloat, PositiveInt

from raymtl.data.base import Arrays, Bucket, Population, SingleTask, Split, same_domain
from raymtl.data.counts import Count, drawn, usual
from raymtl.data.draws import Draws, alike
from raymtl.tasks import regression
from raymtl.types import Batch, Episode, Metric, Task

X = (-5.0, 5.0)
AMPLITUDE, PHASE = (0.1, 5.0), (0.0, math.pi)  # of the sinusoids
COEFFICIENT = (
    -3.0,
    3.0,
)  # slopes and intercepts of the lines, centres and offsets of the parabolas
BEND = (0.02, 0.15)  # of the parabolas, of either sign

Curve = Callable[[np.ndarray], np.ndarray]
"""A curve for each episode: x [E, N] -> y [E, N]."""


class Family(NamedTuple):
    """Curves of one form; `mean` and `second_moment` are those of y over the family's curves and
    over x.
    """

    draw: Callable[[Draws], Curve]
    mean: float
    second_moment: float


def moment(bounds: tuple[float, float], order: int) -> float:
    """E[u^order] of u uniform between the bounds."""
    low, high = bounds
    return (high ** (order + 1) - low ** (order + 1)) / ((order + 1) * (high - low))


def _sinusoid(draws: Draws) -> Curve:
    amplitude, phase = draws.uniform(*AMPLITUDE, 1), draws.uniform(*PHASE, 1)
    return lambda x: amplitude * np.sin(x - phase)


def _line(draws: Draws) -> Curve:
    slope, intercept = draws.uniform(*COEFFICIENT, 1), draws.uniform(*COEFFICIENT, 1)
    return lambda x: slope * x + intercept


def _quadratic(draws: Draws) -> Curve:
    bend = draws.uniform(*BEND, 1) * np.where(draws.coins(1), 1.0, -1.0)
    centre, offset = draws.uniform(*COEFFICIENT, 1), draws.uniform(*COEFFICIENT, 1)
    return lambda x: bend * (x - centre) ** 2 + offset


# Over half a period of phases E[sin(x - phase)] = -2/pi cos x and E[sin^2] = 1/2, at every x.
_SINUSOID_MEAN = -2 / math.pi * moment(AMPLITUDE, 1) * math.sin(X[1]) / X[1]
_X2, _C2 = moment(X, 2), moment(COEFFICIENT, 2)
_X_MINUS_C_4 = moment(X, 4) + 6 * _X2 * _C2 + moment(COEFFICIENT, 4)
FAMILIES: Mapping[str, Family] = {
    "sinusoid": Family(_sinusoid, _SINUSOID_MEAN, moment(AMPLITUDE, 2) / 2),
    "line": Family(_line, 0.0, _C2 * _X2 + _C2),
    "quadratic": Family(_quadratic, 0.0, moment(BEND, 2) * _X_MINUS_C_4 + _C2),
}


class Curves(SingleTask):
    """An episode is one curve y(x), x uniform in [-5, 5]; its `shots` and `queries` points are
    drawn independently.

    The one task, `y`, is regression: its loss is in units of the variance of y over all curves of
    the source, its metric `mse` in the unit of y^2. Curves are drawn from a continuum, by other
    generators for other splits, so that no two episodes have one in common.
    """

    task: ClassVar[str] = "y"
    shots: Count = 10
    queries: PositiveInt = 10
    noise_std: NonNegativeFloat = 0.0
    """Of the Gaussian noise on y, in support and query alike."""

    @property
    def is_image(self) -> bool:
        return False

    @property
    @abstractmethod
    def family_names(self) -> tuple[str, ...]:
        """The families, drawn with equal odds."""

    def make_tasks(self) -> tuple[Task, ...]:
        families = [FAMILIES[name] for name in self.family_names]
        mean = sum(family.mean for family in families) / len(families)
        second_moment = (
            sum(family.second_moment for family in families) / len(families) + self.noise_std**2
        )
        task = regression("y", mean, math.sqrt(second_moment - mean**2))
        mse = Metric(
            lambda prediction, y: (task.decode(prediction) - y).square(), higher_is_better=False
        )
        return (task._replace(metrics={**task.metrics, "mse": mse}),)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (1,)

    def load(self) -> dict[str, np.ndarray]:
        return {}

    def sizes(self, arrays: Arrays) -> Mapping[str, int]:
        # There is no end of them; only the proportion between tasks counts, and there is one task.
        return dict.fromkeys(self.task_names, usual(self.shots) + self.queries)

    @property
    def about_episodes(self) -> str:
        return "a curve of its own, drawn from a continuum"

    def populations(self, arrays: Arrays, split: Split) -> tuple[Population, ...]:
        return (Population("curve", None),)

    def draw_episodes(self, arrays: Arrays, split: Split, draws: Draws) -> Iterator[Bucket]:
        families: int | np.ndarray = 0
        if len(self.family_names) > 1:
            families = draws.integers(len(self.family_names))
        for own, (family, shots) in alike(draws, families, drawn(self.shots, draws)):
            name = self.family_names[family]
            curve = FAMILIES[name].draw(own)
            x = own.uniform(*X, shots + self.queries)
            y = curve(x)
            if self.noise_std:
                y += self.noise_std * own.normal(x.shape[1])
            inputs, targets = torch.from_numpy(x).float()[..., None], torch.from_numpy(y).float()
            support, query = (
                Batch(inputs[:, part], {"y": targets[:, part]}, {})
                for part in (slice(shots), slice(shots, None))
            )
            yield Bucket(Episode(support, query), own.indices, same_domain(name, len(own)))
