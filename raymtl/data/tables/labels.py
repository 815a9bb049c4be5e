"""Labels in the columns of a table: their classes or statistics."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow.compute as pc

from raymtl.data.tables.class_weights import check_class_loss, fit_class_weights
from raymtl.data.tables.columns import (
    LocateRow,
    in_order,
    is_list,
    is_text,
    plain,
    texts,
)
from raymtl.data.tables.flags import no_then_yes
from raymtl.data.tables.label_encoding import LISTED, Encoded, encode_task
from raymtl.data.tables.label_kinds import SEPARATORS, Columns, column_at, infer_kind
from raymtl.data.tables.schema import FittedTask, TaskColumn, label_text
from raymtl.data.tables.statistics import LabelSums
from raymtl.tasks.classification import CLASSIFICATION
from raymtl.types import TaskKind, UserError


def look_at_labels(
    name: str,
    column_spec: TaskColumn,
    columns: Columns,
    locate_row: LocateRow,
    *,
    few_shot: bool = False,
) -> FittedTask:
    """What the labels are, but for what is counted in them: their kind, and what separates the
    names of a set.

    `few_shot` says that episodes are of classes, of which two are no binary task. Raises UserError
    for labels of no kind.
    """
    kind = column_spec.task_kind or infer_kind(name, column_spec, columns, locate_row)
    if few_shot and column_spec.task_kind is None and kind.has_class_targets:
        kind = CLASSIFICATION
    _check_keys(name, column_spec, columns, kind)
    check_class_loss(name, column_spec, kind, few_shot=few_shot)
    separator = None
    if kind.label_form == "set":
        separator = column_spec.separator or _separator(columns)
    is_vector = len(columns) > 1 or is_list(next(iter(columns.values())).type)
    return FittedTask(
        asked=column_spec,
        kind=kind.name,
        inferred=column_spec.task_kind is None,
        separator=separator,
        vector=kind.label_form == "number" and is_vector,
        labelled=0.0,
    )


def fit_task(
    name: str, looked_at: FittedTask, sums: LabelSums, names: Sequence[str], num_rows: int
) -> FittedTask:
    """The same with classes of all rows, means and spreads of those for training, by the sums over
    the labels in the columns with these `names`; `num_rows` are for training.

    Raises UserError for too few or too many classes.
    """
    found: dict[str, Any]
    if looked_at.task_kind.label_form == "number":
        means = tuple(moments.mean for moments in sums.moments)
        stds = tuple(moments.std or 1.0 for moments in sums.moments)
        found = {"means": means, "stds": stds}
    else:
        found = {"classes": _classes(name, looked_at, sums, names)}
    fitted = looked_at.model_copy(update={**found, "labelled": sums.labelled / num_rows})
    weights = fit_class_weights(name, fitted, sums)
    return fitted.model_copy(update={"class_weights": weights})


def check_labels(
    name: str, fitted: FittedTask, columns: Columns, train: np.ndarray, locate_row: LocateRow
) -> Encoded:
    """The encoded labels. Raises UserError for one outside the classes, and where no row for
    training [N] has any.
    """
    target, mask = encode_task(name, fitted, columns, locate_row)
    if not mask[train].any():
        raise UserError(
            f"{column_at(name, columns, locate_row)}: expected labels in the rows for training, "
            f"got none in {int(train.sum())} rows. Correct the column, or leave the task away."
        )
    return target, mask


def _check_keys(name: str, column_spec: TaskColumn, columns: Columns, kind: TaskKind) -> None:
    """Raises UserError for keys that tasks of this kind do not take."""
    key = f"data.tasks.{name}"
    if column_spec.classes and kind.label_form == "number":
        raise UserError(
            f"{key}.classes: expected none of kind {kind}, got {list(column_spec.classes)}. Leave "
            "them away."
        )
    if len(columns) > 1 and kind.label_form == "class":
        raise UserError(
            f"{key}.columns: expected one column of kind {kind}, got {list(columns)}. Use `column`."
        )


def _separator(columns: Columns) -> str | None:
    first = next(iter(columns.values()))
    if len(columns) > 1 or not is_text(plain(first).type):
        return None
    counts = [pc.sum(pc.count_substring(texts(first), mark)).as_py() or 0 for mark in SEPARATORS]
    return SEPARATORS[int(np.argmax(counts))]


def _classes(
    name: str, looked_at: FittedTask, sums: LabelSums, names: Sequence[str]
) -> tuple[str, ...]:
    """The classes or labels by their numbers: those given, or those found. Raises UserError."""
    key, kind = f"data.tasks.{name}", looked_at.task_kind
    given = tuple(label_text(value) for value in looked_at.asked.classes or ())
    if kind.has_label_sets and len(names) > 1:
        if given:
            raise UserError(f"{key}.classes: expected none beside `columns`, which are the labels.")
        return tuple(names)
    if len(set(given)) < len(given):
        raise UserError(f"{key}.classes: expected every class once, got {list(given)}.")
    classes = given or _found_classes(sums, kind)
    least = 2
    if kind.has_label_sets:
        least = 1
    if len(classes) < least:
        raise UserError(
            f"{key}: column '{names[0]}': expected labels of {least} "
            f"classes at least, got {list(classes)}. Correct the column, name its classes, or "
            "leave the task away."
        )
    if kind.max_classes and len(classes) > kind.max_classes:
        raise UserError(
            f"{key}: column '{names[0]}': expected two classes of kind "
            f"{kind}, got {len(classes)}: {list(classes[:LISTED])}. Take kind: classification."
        )
    return classes


def _found_classes(sums: LabelSums, kind: TaskKind) -> tuple[str, ...]:
    """The different labels of a column; of two classes the one that means yes is the last."""
    classes = in_order(sums.yes)
    if kind.max_classes != 2:
        return classes
    if len(classes) == 1 and classes[0] in ("0", "1"):
        return ("0", "1")
    return no_then_yes(classes)
