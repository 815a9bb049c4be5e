"""Held-out inputs as inline images, with what the best model said before and after adaptation."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from raymtl.data import Source
from raymtl.reporting.html.collect import Row
from raymtl.reporting.html.panels import Panel, panels, png
from raymtl.reporting.html.values import show
from raymtl.types import LabelForm, Task

MOST = 12
LISTED = 12  # numbers of a vector that a line shows


class ShownPrediction(NamedTuple):
    """A prediction; `right` is None for a number, which is near or far, not right or wrong."""

    text: str
    right: bool | None


class Line(NamedTuple):
    """One task under a picture."""

    task: str
    target: str
    before: ShownPrediction
    after: ShownPrediction


class Picture(NamedTuple):
    """A picture with its domain, a line a task, and a panel a task whose outputs are drawn."""

    source: str
    domain: str
    lines: Sequence[Line]
    panels: Sequence[Panel]


def pictures(examples: Sequence[Row], tasks: Sequence[Task], data: Source) -> list[Picture]:
    """The first examples; none where the inputs are no pictures."""
    shown = []
    for row in examples[:MOST]:
        shape = row["shape"]
        if len(shape) != 3 or shape[0] not in (1, 3) or not isinstance(row["input"][0], int):
            continue
        lines: list[Line] = []
        drawn: list[Panel] = []
        for task in tasks:
            names = data.class_names(task.name)
            lines += _lines(row, task, names)
            drawn += panels(row, task, names)
        pixels = np.array(row["input"], np.uint8).reshape(shape).transpose(1, 2, 0)
        shown.append(Picture(png(pixels), str(row["domain"]), lines, drawn))
    return shown


def _lines(row: Row, task: Task, names: Sequence[str]) -> list[Line]:
    """One line, or none for a task without a label here or whose outputs are drawn."""
    target = row.get(f"{task.name}.target")
    if target is None or task.is_dense or (isinstance(target, list) and len(target) > LISTED):
        return []
    read = READERS.get(task.kind.label_form, _number)
    shown = []
    for when in ("before", "after"):
        value = row.get(f"{task.name}.{when}")
        shown.append(ShownPrediction(read(value, names), _right(task, value, target)))
    return [Line(task.name, read(target, names), *shown)]


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
    labels = names or [str(number) for number in range(len(value))]
    applying = [label for label, flag in zip(labels, value, strict=True) if flag == 1]
    return ", ".join(applying) or "none"


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
