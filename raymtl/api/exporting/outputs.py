"""What the graph of an exported model says of each task."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from raymtl.data import Files, Source, files_of
from raymtl.types import Task, UserError

SAYS = {
    "class": "the probability of each class",
    "set": "the probability of each label",
    "number": "the value in the unit of the labels",
    "map": "the value of every pixel",
    "boxes": "boxes",
}


def output_of(task: Task, prediction: Tensor) -> Tensor:
    """Probabilities of classes or labels, [N, C], or the values that people read, [N, ...]."""
    if task.kind.has_class_targets:
        return task.kind.probabilities(prediction)
    if task.kind.has_label_sets:
        return prediction.sigmoid()
    if task.kind.predicts_numbers:
        # In float64, for values may be large beside what tells them apart.
        prediction = prediction.double()
    return task.decode(prediction)


def check_tasks(tasks: Sequence[Task]) -> None:
    """Raises UserError for tasks whose predictions no graph can make."""
    for task in tasks:
        if task.kind.has_boxes:
            raise UserError(
                f"data.tasks: expected tasks that a graph of tensors can predict, got the "
                f"{task.kind} '{task.name}', whose boxes are chosen one after the other. Predict "
                "with `raymtl predict`, or train a run without it."
            )


def described(
    source: Source, task: Task, shape: Sequence[int], class_names: Mapping[str, tuple[str, ...]]
) -> dict[str, Any]:
    """The output of a task for model.json; `shape` is that of one example."""
    about: dict[str, Any] = {
        "name": task.name,
        "kind": task.kind.name,
        "says": SAYS[task.kind.label_form],
        "shape": ["batch", *shape],
    }
    if task.kind.label_form in ("class", "set") or task.kind.has_integer_targets:
        about["classes"] = list(_class_names(source, task, class_names))
    if task.thresholds:
        # As probabilities, such as the outputs are.
        about["yes_above"] = [_probability(threshold) for threshold in task.thresholds]
    files = files_of(source)
    if files is not None and task.kind.is_map:
        about |= _of_maps(files, task)
    return about


def _probability(threshold: float | None) -> float:
    """Of a logit, and 1/2 where none was chosen."""
    if threshold is None:
        return 0.5
    return float(torch.tensor(threshold, dtype=torch.float64).sigmoid())


def _class_names(
    source: Source, task: Task, class_names: Mapping[str, tuple[str, ...]]
) -> tuple[str, ...]:
    names = class_names.get(task.name, ())
    if not names and task.name in source.task_names:
        names = source.class_names(task.name)
    return names or tuple(str(number) for number in range(task.num_classes))


def _of_maps(files: Files, task: Task) -> dict[str, Any]:
    """What stands for the classes in the user's own maps, where that is not 0, 1, 2 ..."""
    values = files.found.tasks[task.name].values
    if not values:
        return {}
    return {"values": list(values)}
