"""How much each class of a task counts in its loss, by the labels for training."""

from collections.abc import Mapping
from typing import Literal

import numpy as np

from raymtl.data.tables.schema import FittedTask, Label, TaskColumn, label_text
from raymtl.data.tables.statistics import LabelSums
from raymtl.tasks.class_loss import balanced_weights, normalised_weights
from raymtl.types import TaskKind, UserError


def check_class_loss(name: str, asked: TaskColumn, kind: TaskKind, *, few_shot: bool) -> None:
    """Raises UserError where a task of this kind has no classes whose loss could be changed."""
    given = {
        "class_weights": asked.class_weights,
        "pos_weight": asked.pos_weight,
        "label_smoothing": asked.label_smoothing,
        "focal": asked.focal,
    }
    for key, value in given.items():
        if value and not kind.takes_class_loss:
            raise UserError(
                f"data.tasks.{name}.{key}: expected none of kind {kind}, got {value}. Leave it "
                "away."
            )
    _check_pos_weight(name, asked, kind)
    if asked.class_weights and few_shot:
        raise UserError(
            f"data.tasks.{name}.class_weights: expected none with data.episodes: classes, which "
            f"are numbered anew in every episode, got {asked.class_weights}. Leave it away."
        )


def _check_pos_weight(name: str, asked: TaskColumn, kind: TaskKind) -> None:
    """Raises UserError where there is no yes to weigh, or where it is weighed twice."""
    given, key = asked.pos_weight, f"data.tasks.{name}.pos_weight"
    if given is None:
        return
    if not kind.has_thresholds:
        raise UserError(
            f"{key}: expected none of kind {kind}, which has no yes, got {given}. Use "
            "class_weights."
        )
    if asked.class_weights is not None:
        raise UserError(
            f"{key}: expected none beside class_weights, which weigh the same, got {given}. Leave "
            "one of them away."
        )
    if isinstance(given, Mapping) and not kind.has_label_sets:
        raise UserError(
            f"{key}: expected balanced or one number of kind {kind}, got {dict(given)}. Give the "
            "number."
        )


def fit_class_weights(name: str, fitted: FittedTask, sums: LabelSums) -> tuple[float, ...]:
    """The weights of the classes, by how often the labels for training have each; none where all
    count alike. Raises UserError for a class that the task does not have.
    """
    if fitted.asked.pos_weight is not None:
        return _of_yes(name, fitted, sums)
    asked = fitted.asked.class_weights
    if asked is None:
        return ()
    if fitted.task_kind.has_label_sets:
        return _of_labels(f"{name}.class_weights", asked, fitted, sums)
    counts = np.array([sums.yes.get(label, 0) for label in fitted.classes])
    weights = balanced_weights(counts)
    if isinstance(asked, Mapping):
        key = f"{name}.class_weights"
        weights = normalised_weights(_given(key, asked, fitted.classes), counts)
    return tuple(weights.tolist())


def _of_yes(name: str, fitted: FittedTask, sums: LabelSums) -> tuple[float, ...]:
    """By `pos_weight`: of a binary task the weights of no and yes, of labels those of each yes."""
    asked = fitted.asked.pos_weight
    assert asked is not None
    if fitted.task_kind.has_label_sets:
        return _of_labels(f"{name}.pos_weight", asked, fitted, sums)
    if isinstance(asked, float):
        return (1.0, asked)
    no, yes = (sums.yes.get(label, 0) for label in fitted.classes)
    return (1.0, _balanced_yes(no, yes))


def _of_labels(
    key: str,
    asked: Literal["balanced"] | float | Mapping[Label, float],
    fitted: FittedTask,
    sums: LabelSums,
) -> tuple[float, ...]:
    """The weight of the yes of each label."""
    if isinstance(asked, Mapping):
        return tuple(_given(key, asked, fitted.classes).tolist())
    if isinstance(asked, float):
        return (asked,) * len(fitted.classes)
    weights = []
    for label in fitted.classes:
        yes = sums.yes.get(label, 0)
        no = sums.no.get(label, sums.labelled - yes)
        weights.append(_balanced_yes(no, yes))
    return tuple(weights)


def _balanced_yes(no: float, yes: float) -> float:
    """The weight by which all yeses count as much as all noes; 1 where one of them is absent."""
    if yes and no:
        return no / yes
    return 1.0


def _given(key: str, asked: Mapping[Label, float], classes: tuple[str, ...]) -> np.ndarray:
    """The weights that were given, and 1 for the other classes. Raises UserError."""
    weights = {label_text(label): weight for label, weight in asked.items()}
    for label in weights:
        if label not in classes:
            raise UserError(
                f"data.tasks.{key}: expected classes of the task, "
                f"{list(classes[:10])}, got '{label}'. Correct it."
            )
    return np.array([weights.get(label, 1.0) for label in classes])
