"""Chooses thresholds of decisions on the validation split, keeps them in the model folder, and says
so.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from raymtl.config import Experiment
from raymtl.data import Arrays
from raymtl.evaluation.held_out import held_out_split, scored
from raymtl.step.algorithm import Algorithm
from raymtl.storage import formats
from raymtl.storage.notes import Note
from raymtl.tasks import at_thresholds, best_threshold, label_mask
from raymtl.types import Batch, Params, Task

FILE = "thresholds.json"
LISTED = 10
"""Labels whose thresholds a note tells."""
Thresholds = Mapping[str, Sequence[float | None]]
"""Task -> the logit above which each label is a yes; None where validation could not choose one."""


@torch.no_grad()
def choose_thresholds(
    experiment: Experiment, algorithm: Algorithm, params: Params, arrays: Arrays
) -> dict[str, tuple[float | None, ...]]:
    """The thresholds of the tasks that want them, on the validation split alone.

    A model that adapts is judged after it has adapted, on the validation episodes.
    """
    wanted = [task for task in algorithm.tasks if task.threshold_metric is not None]
    if not wanted:
        return {}
    logits: dict[str, list[Tensor]] = {task.name: [] for task in wanted}
    targets: dict[str, list[Tensor]] = {task.name: [] for task in wanted}
    episodes = experiment.evaluate.val_episodes
    held = held_out_split(experiment, algorithm, arrays, "val", episodes)
    for one in scored(held, algorithm, params):
        for task in wanted:
            if task.name in one.batch.targets:
                known = label_mask(one.batch, task)
                logits[task.name].append(one.predictions[task.name][known].double())
                targets[task.name].append(_by_label(one.batch, task)[known])
    return {
        task.name: _of_labels(task, logits[task.name], targets[task.name])
        for task in wanted
        if logits[task.name]
    }


def _by_label(batch: Batch, task: Task) -> Tensor:
    """The targets as [N, num_labels]."""
    target = batch.targets[task.name].double()
    return target.reshape(len(target), task.out_features)


def _of_labels(
    task: Task, logits: Sequence[Tensor], targets: Sequence[Tensor]
) -> tuple[float | None, ...]:
    """The threshold of each label of one task."""
    thresholds = []
    metric = task.threshold_metric
    assert metric is not None
    for own, target in zip(torch.cat(list(logits)).T, torch.cat(list(targets)).T, strict=True):
        known = ~target.isnan()
        thresholds.append(best_threshold(own[known], target[known], metric))
    return tuple(thresholds)


def decided_by(algorithm: Algorithm, thresholds: Thresholds) -> Algorithm:
    """The same algorithm, whose tasks decide by these thresholds."""
    tasks = list(algorithm.tasks)
    for index, task in enumerate(tasks):
        if task.name in thresholds:
            tasks[index] = at_thresholds(task, thresholds[task.name])
    return algorithm._replace(tasks=tuple(tasks))


def save_thresholds(folder: Path, thresholds: Thresholds) -> None:
    """Writes them into a model folder, where there are any."""
    if thresholds:
        formats.write_json(folder / FILE, thresholds)


def kept_thresholds(tasks: Iterable[Task]) -> dict[str, tuple[float | None, ...]]:
    """Those of the tasks that were chosen on validation."""
    return {
        task.name: task.thresholds
        for task in tasks
        if task.thresholds and task.threshold_metric is not None
    }


def with_kept_thresholds(algorithm: Algorithm, folder: Path) -> Algorithm:
    """The same algorithm, whose tasks decide by what is kept in the model folder."""
    if not (folder / FILE).exists():
        return algorithm
    kept = formats.read_json(folder / FILE)
    chosen = {task.name for task in algorithm.tasks if task.threshold_metric is not None}
    return decided_by(algorithm, {name: own for name, own in kept.items() if name in chosen})


def threshold_notes(tasks: Iterable[Task], names: Mapping[str, Sequence[str]]) -> Iterable[Note]:
    """Notes on the thresholds that were chosen; `names` are those of the labels of each task."""
    for task in tasks:
        if not task.thresholds or task.threshold_metric is None:
            continue
        place, key = f"task '{task.name}'", f"data.tasks.{task.name}.threshold"
        labels = names.get(task.name, ())
        told = [
            f"{_label(task, labels, number)} above a probability of {_probability(logit):.3g}"
            for number, logit in enumerate(task.thresholds)
            if logit is not None
        ]
        if told:
            more = ", ..." if len(told) > LISTED else ""
            text = (
                f"{', '.join(told[:LISTED])}{more}, which has the best {task.threshold_metric} on "
                "validation"
            )
            yield Note(place=place, text=text, key=key)
        absent = [
            _label(task, labels, number)
            for number, logit in enumerate(task.thresholds)
            if logit is None
        ]
        if absent:
            text = (
                f"{', '.join(absent[:LISTED])} above a probability of 0.5, since all its labels of "
                "validation are alike, so that no threshold can be chosen"
            )
            yield Note(place=place, text=text, key=key)


def _probability(logit: float) -> float:
    return float(torch.tensor(logit, dtype=torch.float64).sigmoid())


def _label(task: Task, labels: Sequence[str], number: int) -> str:
    """The name of the yes that a threshold is of."""
    if not task.kind.has_label_sets:
        number = 1
    if number < len(labels):
        return f"'{labels[number]}'"
    if task.kind.has_label_sets:
        return f"label {number}"
    return "yes"
