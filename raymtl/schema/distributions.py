"""Distributions of searched values, compiled to an Optuna define-by-run space."""

import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import Discriminator, Field, JsonValue, PositiveFloat, Tag, model_validator

from raymtl.types import Spec, UserError

if TYPE_CHECKING:
    import optuna

Scalar = None | bool | int | float | str


class DistributionBase(Spec):
    """A value is searched only in trials in which every key of `when` has (one of) the values
    given.
    """

    when: Mapping[str, Scalar | tuple[Scalar, ...]] = {}

    def active(self, values: Mapping[str, Any]) -> bool:
        """Whether the trial with these dotted values searches it."""
        for key, wanted in self.when.items():
            if not isinstance(wanted, tuple):
                wanted = (wanted,)
            if values.get(key) not in wanted:
                return False
        return True


class _Range(DistributionBase):
    @property
    def bounds(self) -> tuple[float, float]:
        """Both ends."""
        value: tuple[float, float] = getattr(self, _kind(self) or "")
        return value

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.bounds[0] >= self.bounds[1]:
            raise ValueError(f"expected [low, high] with low < high, got {list(self.bounds)}")
        return self

    def params_of(self, name: str, values: Mapping[str, Any]) -> dict[str, Any] | None:
        """Optuna's parameters for the value of `values`; None where it lies outside."""
        value = values.get(name)
        if value is not None and self.bounds[0] <= value <= self.bounds[1]:
            return {name: value}
        return None

    def typical(self, name: str) -> list[dict[str, Any]]:
        """A value from inside, which stands for all values of the range."""
        return [{name: math.sqrt(0.5) * self.bounds[1] + (1 - math.sqrt(0.5)) * self.bounds[0]}]


class LogUniform(_Range):
    """A positive number whose logarithm is uniform between the bounds.

    Example: `search: {learner.inner_lr: {log_uniform: [0.001, 1.0]}}`
    """

    log_uniform: tuple[PositiveFloat, PositiveFloat]

    def suggest(self, trial: "optuna.Trial", name: str) -> dict[str, Any]:
        return {name: trial.suggest_float(name, *self.log_uniform, log=True)}


class Uniform(_Range):
    """A number uniform between the bounds.

    Example: `search: {train.clip_norm: {uniform: [1.0, 10.0]}}`
    """

    uniform: tuple[float, float]

    def suggest(self, trial: "optuna.Trial", name: str) -> dict[str, Any]:
        return {name: trial.suggest_float(name, *self.uniform)}


class Int(_Range):
    """A whole number between the bounds, both included.

    Example: `search: {learner.inner_steps: {int: [1, 5]}}`
    """

    int: tuple[int, int]

    def suggest(self, trial: "optuna.Trial", name: str) -> dict[str, Any]:
        return {name: trial.suggest_int(name, *self.int)}

    def typical(self, name: str) -> list[dict[str, Any]]:
        return [{name: self.int[1]}]


class Choice(DistributionBase):
    """One of the values listed; a list or mapping is one value and is shown as JSON.

    Example: `search: {weighting.name: {choice: [static, pcgrad]}}`
    """

    choice: Annotated[tuple[JsonValue, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _different(self) -> Self:
        if len(self._labels()) < len(self.choice):
            raise ValueError(f"expected values that differ, got {list(self.choice)}")
        return self

    def _labels(self) -> dict[Scalar, JsonValue]:
        labels: dict[Scalar, JsonValue] = {}
        for value in self.choice:
            if isinstance(value, list | dict):
                labels[json.dumps(value)] = value
            else:
                labels[value] = value
        return labels

    def suggest(self, trial: "optuna.Trial", name: str) -> dict[str, Any]:
        labels = self._labels()
        return {name: labels[trial.suggest_categorical(name, list(labels))]}

    def typical(self, name: str) -> list[dict[str, Any]]:
        return [{name: value} for value in self.choice]

    def params_of(self, name: str, values: Mapping[str, Any]) -> dict[str, Any] | None:
        value = values.get(name)
        if isinstance(value, tuple):
            value = list(value)
        for label, choice in self._labels().items():
            if choice == value:
                return {name: label}
        return None


class Simplex(DistributionBase):
    """Positive weights that sum to 1, uniform on the simplex.

    Optuna's parameters are one u in (0, 1) for each name, called `KEY.NAME:u`; the weights are
    -log u / sum(-log u), which is uniform on the simplex for independent uniform u.

    Example: `search: {weighting.weights: {simplex: [left, right]}}`
    """

    simplex: Annotated[tuple[str, ...], Field(min_length=2)]

    @model_validator(mode="after")
    def _different(self) -> Self:
        if len(set(self.simplex)) < len(self.simplex):
            raise ValueError(f"expected every name once, got {list(self.simplex)}")
        return self

    def suggest(self, trial: "optuna.Trial", name: str) -> dict[str, Any]:
        edge = 1e-6
        raw = {
            n: -math.log(trial.suggest_float(f"{name}.{n}:u", edge, 1 - edge)) for n in self.simplex
        }
        return {f"{name}.{n}": value / sum(raw.values()) for n, value in raw.items()}

    def typical(self, name: str) -> list[dict[str, Any]]:
        return [{f"{name}.{n}": 1 / len(self.simplex) for n in self.simplex}]

    def params_of(self, name: str, values: Mapping[str, Any]) -> dict[str, Any] | None:
        weights = {n: values.get(f"{name}.{n}", 1.0) for n in self.simplex}
        total = sum(weights.values())
        return {
            f"{name}.{n}:u": math.exp(-len(weights) * weight / total)
            for n, weight in weights.items()
        }


KINDS = ("log_uniform", "uniform", "int", "choice", "simplex")


def _kind(value: Any) -> str | None:
    keys: Collection[str] = ()
    if isinstance(value, Mapping):
        keys = value
    elif isinstance(value, Spec):
        keys = type(value).model_fields
    return next((key for key in KINDS if key in keys), None)


Distribution = Annotated[
    Annotated[LogUniform, Tag("log_uniform")]
    | Annotated[Uniform, Tag("uniform")]
    | Annotated[Int, Tag("int")]
    | Annotated[Choice, Tag("choice")]
    | Annotated[Simplex, Tag("simplex")],
    Discriminator(
        _kind,
        custom_error_type="distribution",
        custom_error_message="expected one of log_uniform, uniform, int, choice or simplex",
    ),
]
Space = Mapping[str, Distribution]


def ordered(space: Space) -> list[tuple[str, Distribution]]:
    """The distributions, each behind those that its `when` names.

    Raises UserError where they wait for each other.
    """
    waiting, done = dict(space), []
    while waiting:
        ready = [
            name
            for name, distribution in waiting.items()
            if not set(distribution.when) & set(waiting)
        ]
        if not ready:
            raise UserError(
                f"search: the `when` of {' and '.join(waiting)} wait for each other. Remove one of "
                "them."
            )
        done += [(name, waiting.pop(name)) for name in ready]
    return done


def representatives(space: Space, defaults: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Every combination of the choices, with one inner value of each range; then both ends of each
    range once.
    """
    distributions = ordered(space)

    def combined(
        rest: Sequence[tuple[str, Distribution]], values: dict[str, Any]
    ) -> Iterator[dict[str, Any]]:
        if not rest:
            yield values
        elif not rest[0][1].active({**defaults, **values}):
            yield from combined(rest[1:], values)
        else:
            for more in rest[0][1].typical(rest[0][0]):
                yield from combined(rest[1:], values | more)

    ends = {
        name: distribution.bounds
        for name, distribution in distributions
        if isinstance(distribution, _Range)
    }
    for values in combined(distributions, {}):
        yield values
        for name in set(ends) & set(values):
            for end in ends.pop(name):
                yield values | {name: end}


def suggest(space: Space, defaults: Mapping[str, Any], trial: "optuna.Trial") -> dict[str, Any]:
    """The dotted values of one trial. `defaults` are the configuration's own, for a `when` on what
    is not searched.
    """
    chosen: dict[str, Any] = {}
    for name, distribution in ordered(space):
        if distribution.active({**defaults, **chosen}):
            chosen |= distribution.suggest(trial, name)
    return chosen


def searched_values(searched: Iterable[str], values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the dotted values that the search decides, each weight of a simplex included;
    without those left out.
    """
    keys = tuple(searched)
    return {
        k: v
        for k, v in values.items()
        if v is not None and (k in keys or k.rpartition(".")[0] in keys)
    }


def default_params(space: Space, defaults: Mapping[str, Any]) -> dict[str, Any] | None:
    """Optuna's parameters for the configuration's own values; None where one of them is outside its
    distribution.
    """
    params: dict[str, Any] = {}
    for name, distribution in ordered(space):
        if distribution.active(defaults):
            own = distribution.params_of(name, defaults)
            if own is None:
                return None
            params |= own
    return params
