"""The kinds of task that a user's files can have labels of: a new one is a line here."""

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

from raymtl.data.tables.schema import FittedTask, KindName
from raymtl.tasks import (
    binary,
    classification,
    depth,
    detection,
    multilabel,
    normals,
    regression,
    segmentation,
)
from raymtl.types import Task

Form = Literal["class", "set", "number", "map", "boxes"]
"""What a label is: one of several classes, some of several labels, numbers, what every pixel is, or
boxes.
"""
Size = tuple[int, int]
"""Height and width of the inputs, where they are pictures."""


class Kind(NamedTuple):
    """The form of the labels, and what makes the task from what was found in them."""

    form: Form
    make: Callable[[str, FittedTask, Size], Task]


def _regression(name: str, found: FittedTask, _: Size) -> Task:
    loss = found.asked.loss or "squared"
    if found.vector:
        return regression(name, found.means, found.stds, loss=loss)
    return regression(name, found.means[0], found.stds[0], loss=loss)


KINDS: Mapping[KindName, Kind] = {
    "classification": Kind(
        "class", lambda name, found, _: classification(name, len(found.classes))
    ),
    "binary": Kind("class", lambda name, found, _: binary(name)),
    "multilabel": Kind("set", lambda name, found, _: multilabel(name, len(found.classes))),
    "regression": Kind("number", _regression),
    "segmentation": Kind(
        "map", lambda name, found, size: segmentation(name, len(found.classes), size)
    ),
    "depth": Kind(
        "map", lambda name, found, size: depth(name, size, mean=found.means[0], std=found.stds[0])
    ),
    "normals": Kind("map", lambda name, found, size: normals(name, size)),
    "detection": Kind(
        "boxes",
        lambda name, found, size: detection(
            name, len(found.classes), size, stride=found.asked.stride or 8
        ),
    ),
}
