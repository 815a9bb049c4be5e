"""Functions of one number: families of them, and what the sources that draw episodes from these
have in common.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from pydantic import NonNegativeFloat, PositiveInt

from raymtl.data.base import Arrays, Count, Population, SingleTask, Split, drawn, usual
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


class Family(NamedTuple):
    """Curves of one form; `mean` and `second_moment` are those of y over the family's curves and
    over x.
    """

    draw: Callable[[np.random.Generator], Curve]
    mean: float
    second_moment: float


def moment(bounds: tuple[float, float], order: int) -> float:
    """E[u^order] of u uniform between the bounds."""
    low, high = bounds
    return (high ** (order + 1) - low ** (order + 1)) / ((order + 1) * (high - low))


def _sinusoid(rng: np.random.Generator) -> Curve:
    amplitude, phase = rng.uniform(*AMPLITUDE), rng.uniform(*PHASE)
    return lambda x: amplitude * np.sin(x - phase)


def _line(rng: np.random.Generator) -> Curve:
    slope, intercept = rng.uniform(*COEFFICIENT, size=2)
    return lambda x: slope * x + intercept


def _quadratic(rng: np.random.Generator) -> Curve:
    bend = rng.uniform(*BEND) * rng.choice([-1.0, 1.0])
    centre, offset = rng.uniform(*COEFFICIENT, size=2)
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

    def episode(
        self, arrays: Arrays, split: Split, rng: np.random.Generator
    ) -> tuple[Episode, str]:
        name = self.family_names[rng.integers(len(self.family_names))]
        curve = FAMILIES[name].draw(rng)
        shots = drawn(self.shots, rng)
        x = rng.uniform(*X, size=shots + self.queries)
        y = curve(x) + self.noise_std * rng.standard_normal(len(x))
        inputs, targets = torch.from_numpy(x).float()[:, None], torch.from_numpy(y).float()
        support, query = (
            Batch(inputs[part], {"y": targets[part]}, {})
            for part in (slice(shots), slice(shots, None))
        )
        return Episode(support, query), name
