"""Merges single-task models, with the coefficients that are best on the validation split."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from raymtl.config import Experiment
from raymtl.data import Arrays
from raymtl.evaluation.baselines import alone
from raymtl.evaluation.merging.record import MERGED
from raymtl.evaluation.merging.task_arithmetic import TaskArithmetic
from raymtl.evaluation.merging.ties import TIES
from raymtl.evaluation.scores import validation_scores
from raymtl.step.algorithm import Algorithm
from raymtl.step.execution import ExecutionConfig
from raymtl.step.workers import Workers
from raymtl.storage import formats
from raymtl.storage.notes import Note
from raymtl.types import Params

Method = TaskArithmetic | TIES

METHODS: Mapping[str, tuple[Method, ...]] = {
    "task_arithmetic": tuple(TaskArithmetic(tenths / 10) for tenths in range(1, 11)),
    "ties": tuple(
        TIES(scale, density)
        for density, scale in itertools.product((0.1, 0.2, 0.5), (0.5, 1.0, 1.5))
    ),
}
"""Name of a row of the result table -> the coefficients that are tried for it."""

SYMBOLS = {"scale": "lambda", "density": "k"}


class Family(NamedTuple):
    """Single-task models of the same encoder and learner, one for each task."""

    experiment: Experiment
    """The configuration of the merged model: all tasks, on one trunk."""
    folders: Mapping[str, Path]
    """Task -> model folder."""


class Ingredients(NamedTuple):
    """What a family consists of, in float64."""

    experiment: Experiment
    algorithm: Algorithm
    start: Params
    """theta_0: the values of the trunk from which all its models were trained."""
    vectors: Sequence[Params]
    """theta_t - theta_0 of each task."""
    heads: Params
    """The head of each task, from its own model."""

    def merged(self, method: Method) -> dict[str, Tensor]:
        """The parameters of the merged model, in its own precision and order."""
        change = method.change(self.vectors)
        trunk = {name: value + change[name] for name, value in self.start.items()}
        values = {**trunk, **self.heads}
        expected = self.algorithm.init_params()
        return {name: values[name].to(own.dtype) for name, own in expected.items()}


class Merged(NamedTuple):
    """A merged model and how it scores on the validation split."""

    ingredients: Ingredients
    method: Method
    score: float

    @property
    def coefficients(self) -> dict[str, float]:
        return {SYMBOLS[name]: value for name, value in self.method._asdict().items()}


def merge(families: Sequence[Family], name: str, arrays: Arrays, folder: Path) -> Note | None:
    """Writes the model folder of the method `name`, or returns a note on why there is none.

    Of all families and coefficients, those with the best score on the validation split are taken;
    the first of equal ones.
    """
    possible = [gather(family) for family in families]
    ingredients = [each for each in possible if isinstance(each, Ingredients)]
    if not ingredients:
        return next(each for each in possible if isinstance(each, Note))
    tried = [*_scored(ingredients, METHODS[name], arrays)]
    best = max(tried, key=lambda each: each.score)
    if best.score == -math.inf:
        text = "not made, since no coefficient gives a score on the validation split"
        return note(text, "data.split")
    own = best.ingredients
    folders = families[possible.index(own)].folders
    folder.mkdir(parents=True, exist_ok=True)
    own.experiment.save(folder / "config.yaml")
    record: dict[str, Any] = {
        "method": name,
        "coefficients": best.coefficients,
        "val.score": best.score,
        "models": {task: each.name for task, each in folders.items()},
        "tried": [_row(each, possible.index(each.ingredients)) for each in tried],
    }
    formats.write_json(folder / MERGED, record)
    values = {**own.merged(best.method), **own.algorithm.constants()}
    formats.save_params(folder / "model.safetensors", values)
    return None


def _row(merged: Merged, family: int) -> dict[str, Any]:
    score = None
    if merged.score > -math.inf:
        score = merged.score
    return {"family": family, **merged.coefficients, "val.score": score}


def note(text: str, key: str) -> Note:
    """A note on merged models."""
    return Note(place=" and ".join(METHODS), text=text, key=key)


@torch.no_grad()
def _scored(
    ingredients: Sequence[Ingredients], methods: Sequence[Method], arrays: Arrays
) -> Iterator[Merged]:
    for own, method in itertools.product(ingredients, methods):
        scores = validation_scores(
            own.experiment,
            own.algorithm,
            own.merged(method),
            arrays,
            ExecutionConfig(),
            Workers(),
        )
        score = scores["val.score"]
        if score is None:
            score = -math.inf
        yield Merged(own, method, score)


def gather(family: Family) -> Ingredients | Note:
    """Reads the models of a family, or says why they cannot be merged."""
    experiment = family.experiment
    algorithm = experiment.build()
    params = algorithm.init_params()
    if any(name.startswith("learner.") for name in params):
        text = f"not made, since the learner {experiment.learner.name} has parameters of its own"
        return note(text, "learner.name")
    common = algorithm.model.shared_with_front
    shared = [name for name in params if name.removeprefix("model.") in common]
    if not shared:
        return note(
            "not made, since the trunk is frozen and the tasks share nothing",
            "encoder.frozen_stages",
        )
    start = {name: params[name].detach().double() for name in shared}
    vectors: list[Params] = []
    heads: dict[str, Tensor] = {}
    for task, folder in family.folders.items():
        single = alone(experiment, task).build()
        initial = single.init_params()
        if not _is_common(start, initial):
            text = f"not made, since the model of '{task}' starts from other values than the others"
            return note(text, "encoder.name")
        expected = {**initial, **single.constants()}
        own = single.take(formats.load_params(folder / "model.safetensors", expected))
        vectors.append({name: own[name].double() - start[name] for name in shared})
        heads |= {name: value.double() for name, value in own.items() if name not in start}
    return Ingredients(experiment, algorithm, start, vectors, heads)


def _is_common(start: Params, initial: Params) -> bool:
    """Whether a single-task model starts from these values of the trunk."""
    return all(
        name in initial and torch.equal(initial[name].detach().double(), value)
        for name, value in start.items()
    )
