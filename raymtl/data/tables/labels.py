"""Labels in the columns of a table: their classes or statistics."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raymtl.data.tables.class_weights import check_class_loss, fit_class_weights
from raymtl.data.tables.columns import (
    LocateRow,
    in_order,
    is_list,
    is_text,
    moments,
    plain,
    texts,
)
from raymtl.data.tables.flags import no_then_yes
from raymtl.data.tables.label_encoding import LISTED, encode_task, label_sets, label_vectors
from raymtl.data.tables.label_kinds import SEPARATORS, Columns, column_at, infer_kind
from raymtl.data.tables.schema import FittedTask, TaskColumn, label_text
from raymtl.tasks.classification import CLASSIFICATION
from raymtl.types import TaskKind, UserError


def fit_task(
    name: str,
    column_spec: TaskColumn,
    columns: Columns,
    train: np.ndarray,
    locate_row: LocateRow,
    *,
    few_shot: bool = False,
) -> FittedTask:
    """What the labels are: classes of all rows, means and spreads of those for training [N].

    `few_shot` says that episodes are of classes, of which two are no binary task. Raises UserError
    for labels of no kind, for ones outside the given classes and for a task without any.
    """
    kind = column_spec.task_kind or infer_kind(name, column_spec, columns, locate_row)
    if few_shot and column_spec.task_kind is None and kind.has_class_targets:
        kind = CLASSIFICATION
    _check_keys(name, column_spec, columns, kind)
    check_class_loss(name, column_spec, kind, few_shot=few_shot)
    if kind.label_form == "number":
        statistics = _statistics(columns, train, locate_row)
    else:
        statistics = _class_names(name, column_spec, columns, kind)
    fitted = FittedTask(
        asked=column_spec,
        kind=kind.name,
        inferred=column_spec.task_kind is None,
        labelled=0.0,
        **statistics,
    )
    target, mask = encode_task(name, fitted, columns, locate_row)
    if not mask[train].any():
        raise UserError(
            f"{column_at(name, columns, locate_row)}: expected labels in the rows for training, "
            f"got none in {int(train.sum())} rows. Correct the column, or leave the task away."
        )
    weights = fit_class_weights(name, fitted, target, mask & train)
    return fitted.model_copy(
        update={"labelled": float(mask[train].mean()), "class_weights": weights}
    )


def _class_names(
    name: str, column_spec: TaskColumn, columns: Columns, kind: TaskKind
) -> dict[str, Any]:
    """The classes and, where a label is a set of them, what separates their names."""
    if kind.label_form != "set":
        return {"classes": _classes(name, column_spec, columns, kind, None)}
    separator = column_spec.separator or _separator(columns)
    classes = _classes(name, column_spec, columns, kind, separator)
    return {"separator": separator, "classes": classes}


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


def _statistics(columns: Columns, train: np.ndarray, locate_row: LocateRow) -> dict[str, Any]:
    """Mean and spread of each component, in the rows for training [N]."""
    means, stds = [], []
    for component in label_vectors(columns, locate_row).T:
        known = component[train & np.isfinite(component)]
        mean, std = 0.0, 1.0
        if len(known):
            mean, std = moments(known)
        means.append(mean)
        stds.append(std or 1.0)
    vector = len(columns) > 1 or is_list(next(iter(columns.values())).type)
    return {"vector": vector, "means": tuple(means), "stds": tuple(stds)}


def _separator(columns: Columns) -> str | None:
    first = next(iter(columns.values()))
    if len(columns) > 1 or not is_text(plain(first).type):
        return None
    counts = [pc.sum(pc.count_substring(texts(first), mark)).as_py() or 0 for mark in SEPARATORS]
    return SEPARATORS[int(np.argmax(counts))]


def _classes(
    name: str, column_spec: TaskColumn, columns: Columns, kind: TaskKind, separator: str | None
) -> tuple[str, ...]:
    """The classes or labels by their numbers: those given, or those found. Raises UserError."""
    key = f"data.tasks.{name}"
    given = tuple(label_text(value) for value in column_spec.classes or ())
    if kind.has_label_sets and len(columns) > 1:
        if given:
            raise UserError(f"{key}.classes: expected none beside `columns`, which are the labels.")
        return tuple(columns)
    if len(set(given)) < len(given):
        raise UserError(f"{key}.classes: expected every class once, got {list(given)}.")
    name_of_column, column = next(iter(columns.items()))
    classes = given or _found_classes(column, kind, separator)
    least = 2
    if kind.has_label_sets:
        least = 1
    if len(classes) < least:
        raise UserError(
            f"{key}: column '{name_of_column}': expected labels of {least} "
            f"classes at least, got {list(classes)}. Correct the column, name its classes, or "
            "leave the task away."
        )
    if kind.max_classes and len(classes) > kind.max_classes:
        raise UserError(
            f"{key}: column '{name_of_column}': expected two classes of kind "
            f"{kind}, got {len(classes)}: {list(classes[:LISTED])}. Take kind: classification."
        )
    return classes


def _found_classes(
    column: pa.ChunkedArray, kind: TaskKind, separator: str | None
) -> tuple[str, ...]:
    """The different labels of a column; of two classes the one that means yes is the last."""
    if kind.has_label_sets:
        different: set[str] = set()
        for labels in label_sets(column, separator):
            different.update(labels or ())
        return in_order(different)
    classes = in_order(pc.unique(texts(column)).drop_null().to_pylist())
    if kind.max_classes != 2:
        return classes
    if len(classes) == 1 and classes[0] in ("0", "1"):
        return ("0", "1")
    return no_then_yes(classes)
