"""Describes what was scored, and notes scores that say little."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from raymtl.evaluation.held_out import HeldOutSplit
from raymtl.evaluation.intervals import Estimator
from raymtl.evaluation.scores import Tally, primary_metrics
from raymtl.evaluation.thresholds import threshold_notes
from raymtl.storage.notes import Note
from raymtl.types import Task


def describe_scored(held: HeldOutSplit, tally: Tally) -> dict[str, Any]:
    """The number of scored examples of each task and of members of each population, and a sentence
    with these numbers.
    """
    source, split = held.source, held.split
    counts = zip(tally.tasks, tally.counts.tolist(), strict=True)
    examples = {task.name: int(count) for task, count in counts}
    populations = {
        population.name: population.size for population in source.populations(held.arrays, split)
    }
    members = ", ".join(
        _number(size, name) for name, size in populations.items() if size is not None
    )
    if held.sections:
        number = sum(len(section.rows) for section in held.sections)
        text = f"Every one of the {number} {split} examples was scored once"
        if list(populations) != ["row"]:
            text += f" ({members})"
        text += "."
    else:
        text = (
            f"{held.num_episodes} {split} episodes were scored; an episode is "
            f"{source.about_episodes}."
        )
        if members:
            text += f" Behind them stand {members}."
    return {"examples": examples, "populations": populations, "text": text}


def _number(size: int | None, name: str) -> str:
    """`74 rows`, `1 row`, `12 classes of kind`."""
    if size == 1:
        return f"1 {name}"
    noun, of, rest = name.partition(" of ")
    ending = "s"
    if noun.endswith(("s", "x", "ch")):
        ending = "es"
    return f"{size} {noun}{ending}{of}{rest}"


def score_notes(
    held: HeldOutSplit, estimators: Mapping[str, Estimator], tally: Tally
) -> Iterable[Note]:
    """Notes on tasks without a score, and on models that predict only one class."""
    tasks, split = tally.tasks, held.split
    yield from threshold_notes(tasks, {task.name: _names(held, task) for task in tasks})
    for task, count in zip(tasks, tally.counts.tolist(), strict=True):
        name, place = f"{task.name}.{next(iter(task.metrics))}", f"task '{task.name}'"
        if not count:
            text = (
                f"no label among the scored examples of {split}, so it has no score and is left "
                "out of the mean"
            )
            yield Note(place=place, text=text, key="data.split")
        elif math.isnan(estimators[name].value):
            metric = name.rpartition(".")[2]
            text = (
                f"{metric} is not defined on the {split} labels, which are all alike, and is left "
                "out of the mean"
            )
            yield Note(place=place, text=text, key=f"data.tasks.{task.name}.metric")
        predicted = tally.decisions.get(task.name, set())
        if len(predicted) == 1:
            (number,), names = predicted, _names(held, task)
            text = f"every prediction on {split} is {_class_name(task, names, number)}"
            yield Note(place=place, text=text, key="train.steps")


def _names(held: HeldOutSplit, task: Task) -> Sequence[str]:
    return held.source.class_names(task.name)


def _class_name(task: Task, names: Sequence[str], number: int) -> str:
    """The name of a class in quotes, or its number; for a multi-label task whether all labels
    apply.
    """
    if task.target_shape and not task.is_dense:
        if number:
            return "that every label is there"
        return "that no label is there"
    if names:
        return f"'{names[number]}'"
    return f"class {number}"


def history_notes(tasks: Sequence[Task], history: Sequence[Mapping[str, Any]]) -> Iterable[Note]:
    """Notes on scores that never changed during the training."""
    for name in primary_metrics(tasks):
        values = [row[f"val.{name}"] for row in history if row.get(f"val.{name}") is not None]
        if len(values) > 2 and len(set(values)) == 1:
            task, _, metric = name.rpartition(".")
            text = (
                f"{metric} on validation was {values[0]:.4g} at every one of {len(values)} scorings"
            )
            yield Note(place=f"task '{task}'", text=text, key="train.lr")
