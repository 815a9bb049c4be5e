"""How much each class of a task counts in its loss, by the labels for training."""

from collections.abc import Mapping

import numpy as np

from raymtl.data.tables.schema import FittedTask, Label, TaskColumn, label_text
from raymtl.data.tables.statistics import LabelSums
from raymtl.tasks.class_loss import balanced_weights, normalised_weights
from raymtl.types import TaskKind, UserError


def check_class_loss(name: str, asked: TaskColumn, kind: TaskKind, *, few_shot: bool) -> None:
    """Raises UserError where a task of this kind has no classes whose loss could be changed."""
    given = {
        "class_weights": asked.class_weights,
        "label_smoothing": asked.label_smoothing,
        "focal": asked.focal,
    }
    for key, value in given.items():
        if value and not kind.takes_class_loss:
            raise UserError(
                f"data.tasks.{name}.{key}: expected none of kind {kind}, got {value}. Leave it "
                "away."
            )
    if asked.class_weights and few_shot:
        raise UserError(
            f"data.tasks.{name}.class_weights: expected none with data.episodes: classes, which "
            f"are numbered anew in every episode, got {asked.class_weights}. Leave it away."
        )


def fit_class_weights(name: str, fitted: FittedTask, sums: LabelSums) -> tuple[float, ...]:
    """The weights of the classes, by how often the labels for training have each; none where all
    count alike. Raises UserError for a class that the task does not have.
    """
    asked = fitted.asked.class_weights
    if asked is None:
        return ()
    if fitted.task_kind.has_label_sets:
        return _of_labels(name, fitted, sums)
    counts = np.array([sums.yes.get(label, 0) for label in fitted.classes])
    weights = balanced_weights(counts)
    if isinstance(asked, Mapping):
        weights = normalised_weights(_given(name, asked, fitted.classes), counts)
    return tuple(weights.tolist())


def _of_labels(name: str, fitted: FittedTask, sums: LabelSums) -> tuple[float, ...]:
    """The weight of the yes of each label; of balanced ones noes / yeses, 1 without a yes."""
    asked = fitted.asked.class_weights
    if isinstance(asked, Mapping):
        return tuple(_given(name, asked, fitted.classes).tolist())
    weights = []
    for label in fitted.classes:
        yes = sums.yes.get(label, 0)
        no = sums.no.get(label, sums.labelled - yes)
        weight = 1.0
        if yes and no:
            weight = no / yes
        weights.append(weight)
    return tuple(weights)


def _given(name: str, asked: Mapping[Label, float], classes: tuple[str, ...]) -> np.ndarray:
    """The weights that were given, and 1 for the other classes. Raises UserError."""
    weights = {label_text(label): weight for label, weight in asked.items()}
    for label in weights:
        if label not in classes:
            raise UserError(
                f"data.tasks.{name}.class_weights: expected classes of the task, "
                f"{list(classes[:10])}, got '{label}'. Correct it."
            )
    return np.array([weights.get(label, 1.0) for label in classes])
