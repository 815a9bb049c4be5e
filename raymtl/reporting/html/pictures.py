"""Held-out inputs as inline images, with what the best model said before and after adaptation."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from raymtl.data import Source
from raymtl.reporting.html.collect import Row
from raymtl.reporting.html.panels import Panel, panels, png
from raymtl.reporting.html.tables import show
from raymtl.types import LabelForm, Task

MOST = 12
LISTED = 12  # numbers of a vector that a line shows


class Answer(NamedTuple):
    """A prediction; `right` is None for a number, which is near or far, not right or wrong."""

    text: str
    right: bool | None


class Line(NamedTuple):
    """One task under a picture."""

    task: str
    target: str
    before: Answer
    after: Answer


class Picture(NamedTuple):
    """A picture with its domain, a line a task, and a panel a task whose outputs are drawn."""

    source: str
    domain: str
    lines: Sequence[Line]
    panels: Sequence[Panel]


def pictures(examples: Sequence[Row], tasks: Sequence[Task], data: Source) -> list[Picture]:
    """The first examples; none where the inputs are no pictures."""
    return [
        Picture(
            png(np.array(row["input"], np.uint8).reshape(row["shape"]).transpose(1, 2, 0)),
            str(row["domain"]),
            [line for task in tasks for line in _lines(row, task, data.class_names(task.name))],
            [panel for task in tasks for panel in panels(row, task, data.class_names(task.name))],
        )
        for row in examples[:MOST]
        if len(row["shape"]) == 3 and row["shape"][0] in (1, 3) and isinstance(row["input"][0], int)
    ]


def _lines(row: Row, task: Task, names: Sequence[str]) -> list[Line]:
    """One, or none of a task without a label here or whose outputs are drawn."""
    target, before, after = (
        row.get(f"{task.name}.{part}") for part in ("target", "before", "after")
    )
    if target is None or task.is_dense or (isinstance(target, list) and len(target) > LISTED):
        return []
    read = READERS.get(task.kind.label_form, _number)
    said = [Answer(read(value, names), _right(task, value, target)) for value in (before, after)]
    return [Line(task.name, read(target, names), *said)]


def _right(task: Task, value: Any, target: Any) -> bool | None:
    if task.kind.has_class_targets and value is not None:
        return bool(value == target)
    return None


def _class(value: Any, names: Sequence[str]) -> str:
    if not isinstance(value, float):
        return _number(value, names)
    if int(value) < len(names):
        return names[int(value)]
    return str(int(value))


def _labels(value: Any, names: Sequence[str]) -> str:
    if not isinstance(value, list):
        return _number(value, names)
    called = names or [str(number) for number in range(len(value))]
    return (
        ", ".join(name for name, there in zip(called, value, strict=True) if there == 1) or "none"
    )


def _number(value: Any, names: Sequence[str]) -> str:
    if value is None:
        return "–"
    if not isinstance(value, list):
        if isinstance(value, float):
            return f"{value:.3g}"
        return show(value)
    listed = ["–" if part is None or part != part else f"{part:.3g}" for part in value]
    if len(names) == len(value):
        return ", ".join(f"{name} {part}" for name, part in zip(names, listed, strict=True))
    return ", ".join(listed)


READERS: Mapping[LabelForm, Callable[[Any, Sequence[str]], str]] = {
    "class": _class,
    "set": _labels,
}
