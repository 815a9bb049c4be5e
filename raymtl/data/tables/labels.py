"""Labels in the columns of a table: their classes or statistics, and their numbers."""

from collections.abc import Sequence
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
    numbers,
    plain,
    texts,
    vectors,
)
from raymtl.data.tables.flags import NO_WORDS, YES_WORDS, no_then_yes
from raymtl.data.tables.label_kinds import SEPARATORS, Columns, column_at, infer_kind
from raymtl.data.tables.schema import FittedTask, TaskColumn, label_text
from raymtl.tasks.classification import CLASSIFICATION
from raymtl.types import TaskKind, UserError

LARGEST = 1e38
"""Labels beyond it have squares and sums that no number can hold."""
LISTED = 10
"""The number of classes that a message lists."""

Encoded = tuple[np.ndarray, np.ndarray]
"""The targets, and which rows have one, [N] bool."""


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
    for component in _vectors(columns, locate_row).T:
        known = component[train & np.isfinite(component)]
        mean, std = 0.0, 1.0
        if len(known):
            mean, std = moments(known)
        means.append(mean)
        stds.append(std or 1.0)
    vector = len(columns) > 1 or is_list(next(iter(columns.values())).type)
    return {"vector": vector, "means": tuple(means), "stds": tuple(stds)}


def _vectors(columns: Columns, locate_row: LocateRow) -> np.ndarray:
    """[N, D] float64, nan for what is missing."""
    if len(columns) == 1:
        name, column = next(iter(columns.items()))
        if is_list(plain(column).type):
            return vectors(column, name, locate_row)
    return np.stack([numbers(column, name, locate_row) for name, column in columns.items()], 1)


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
        for labels in _sets(column, separator):
            different.update(labels or ())
        return in_order(different)
    classes = in_order(pc.unique(texts(column)).drop_null().to_pylist())
    if kind.max_classes != 2:
        return classes
    if len(classes) == 1 and classes[0] in ("0", "1"):
        return ("0", "1")
    return no_then_yes(classes)


def _sets(column: pa.ChunkedArray, separator: str | None) -> Sequence[Sequence[str] | None]:
    """The labels of each row; None where they are missing."""
    values = plain(column)
    if not is_list(values.type):
        return [_parts(text, separator or ";") for text in texts(column).to_pylist()]
    flat = texts(pc.list_flatten(values)).to_pylist()
    sets: list[Sequence[str] | None] = []
    start = 0
    for length in pc.list_value_length(values).to_pylist():
        if length is None:
            sets.append(None)
            continue
        labels = flat[start : start + length]
        sets.append([label for label in labels if label is not None])
        start += length
    return sets


def _parts(text: str | None, separator: str) -> Sequence[str] | None:
    if text is None:
        return None
    parts = [part.strip() for part in text.split(separator)]
    return [part for part in parts if part]


def encode_task(name: str, fitted: FittedTask, columns: Columns, locate_row: LocateRow) -> Encoded:
    """Targets [N] int64, [N] or [N, D] float64 with nan, as the task takes them; and where they
    are, [N] bool.

    Raises UserError, with file, row and column, for a label outside the classes or one that is no
    number.
    """
    form = fitted.task_kind.label_form
    if form == "class":
        return _encode_classes(name, fitted, columns, locate_row)
    if form == "set":
        return _encode_sets(name, fitted, columns, locate_row)
    return _encode_numbers(fitted, columns, locate_row)


def _encode_classes(
    name: str, fitted: FittedTask, columns: Columns, locate_row: LocateRow
) -> Encoded:
    ((column_name, column),) = columns.items()
    text = texts(column)
    index = pc.index_in(text, value_set=pa.array(fitted.classes, pa.string()))
    outside = pc.and_(pc.is_valid(text), pc.is_null(index)).to_numpy(zero_copy_only=False)
    if outside.any():
        row = int(outside.argmax())
        location = f"{locate_row(row)}, column '{column_name}'"
        raise UserError(_outside(name, fitted, location, text[row].as_py()))
    mask = pc.is_valid(index).to_numpy(zero_copy_only=False)
    return pc.fill_null(index, 0).to_numpy(zero_copy_only=False).astype(np.int64), mask


def _encode_sets(name: str, fitted: FittedTask, columns: Columns, locate_row: LocateRow) -> Encoded:
    column_name, column = next(iter(columns.items()))
    target = np.full((len(column), len(fitted.classes)), np.nan, np.float32)
    if len(columns) > 1:
        for number, (label, flags) in enumerate(columns.items()):
            target[:, number] = _flags(label, flags, locate_row)
        return target, np.asarray(~np.isnan(target).all(1))
    number_of = {label: number for number, label in enumerate(fitted.classes)}
    for row, labels in enumerate(_sets(column, fitted.separator)):
        if labels is None:
            continue
        target[row] = 0
        for label in labels:
            if label not in number_of:
                location = f"{locate_row(row)}, column '{column_name}'"
                raise UserError(_outside(name, fitted, location, label))
            target[row, number_of[label]] = 1
    return target, np.asarray(~np.isnan(target).all(1))


def _encode_numbers(fitted: FittedTask, columns: Columns, locate_row: LocateRow) -> Encoded:
    column_name = next(iter(columns))
    values = _vectors(columns, locate_row)
    extreme = (np.abs(np.nan_to_num(values)) > LARGEST).any(1)
    if extreme.any():
        row = int(extreme.argmax())
        if fitted.vector:
            got = values[row].tolist()
        else:
            got = values[row, 0]
        raise UserError(
            f"{locate_row(row)}, column '{column_name}': expected a finite number of less than "
            f"1e38, got {got}. Correct the label, or divide all of them."
        )
    mask = ~np.isnan(values).all(1)
    if not fitted.vector:
        return np.nan_to_num(values[:, 0], nan=fitted.means[0]), mask
    if values.shape[1] != len(fitted.means):
        raise UserError(
            f"{locate_row(0)}, column '{column_name}': expected {len(fitted.means)} numbers, got "
            f"{values.shape[1]}."
        )
    return values, mask


def _flags(label: str, column: pa.ChunkedArray, locate_row: LocateRow) -> np.ndarray:
    text = pc.utf8_lower(texts(column))
    index = pc.index_in(text, value_set=pa.array([*NO_WORDS, *YES_WORDS]))
    outside = pc.and_(pc.is_valid(text), pc.is_null(index)).to_numpy(zero_copy_only=False)
    if outside.any():
        row = int(outside.argmax())
        raise UserError(
            f"{locate_row(row)}, column '{label}': expected 0 or 1, true or false, yes or no, got "
            f"{text[row].as_py()!r}."
        )
    values = pc.cast(index, pa.float64()).to_numpy(zero_copy_only=False)
    flags: np.ndarray = np.where(np.isnan(values), np.nan, values >= len(NO_WORDS))
    return flags


def _outside(name: str, fitted: FittedTask, location: str, label: str) -> str:
    """The message about a label that is none of the classes."""
    classes = str(list(fitted.classes[:LISTED]))
    if len(fitted.classes) > LISTED:
        classes += f" and {len(fitted.classes) - LISTED} more"
    hint = f" Correct the label, or add it to data.tasks.{name}.classes."
    if any(isinstance(value, bool) for value in fitted.asked.classes or ()):
        hint = " YAML reads yes and no as true and false: put the classes in quotes."
    if label.lstrip("0") in fitted.classes:
        hint = f" YAML reads {label} as {label.lstrip('0')}: put the classes in quotes."
    return f"{location}: expected a label of task '{name}', one of {classes}, got '{label}'.{hint}"
