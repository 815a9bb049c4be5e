"""The kinds of task that a user's files can have labels of: a new one is a line here."""

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

from raymtl.data.files.schema import FittedTask, KindName
from raymtl.tasks import binary, classification, multilabel, regression
from raymtl.types import Task

Form = Literal["class", "set", "number"]
"""What a label is: one of several classes, some of several labels, or numbers."""


class Kind(NamedTuple):
    """The form of the labels, and what makes the task from what was found in them."""

    form: Form
    make: Callable[[str, FittedTask], Task]


def _regression(name: str, found: FittedTask) -> Task:
    loss = found.asked.loss or "squared"
    if found.vector:
        return regression(name, found.means, found.stds, loss=loss)
    return regression(name, found.means[0], found.stds[0], loss=loss)


KINDS: Mapping[KindName, Kind] = {
    "classification": Kind("class", lambda name, found: classification(name, len(found.classes))),
    "binary": Kind("class", lambda name, found: binary(name)),
    "multilabel": Kind("set", lambda name, found: multilabel(name, len(found.classes))),
    "regression": Kind("number", _regression),
}
