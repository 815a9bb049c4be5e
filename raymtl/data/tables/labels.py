"""Labels in the columns of a table: which kind of task they are of, and their numbers."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raymtl.data.tables.columns import (
    LocateRow,
    in_order,
    is_bytes,
    is_list,
    is_number,
    is_text,
    moments,
    numbers,
    plain,
    texts,
    vectors,
)
from raymtl.data.tables.flags import NO_WORDS, YES_WORDS, holds_flags, no_then_yes
from raymtl.data.tables.schema import FittedTask, TaskColumn, label_text
from raymtl.tasks.binary import BINARY
from raymtl.tasks.classification import CLASSIFICATION
from raymtl.tasks.multilabel import MULTILABEL
from raymtl.tasks.regression import REGRESSION
from raymtl.types import TaskKind, UserError

LARGEST = 1e38
"""Labels beyond it have squares and sums that no number can hold."""
FEW = 20
"""Whole numbers that are no more different ones than this are taken for classes."""
SEPARATORS = (";", "|", ",")

Columns = Mapping[str, pa.ChunkedArray]
"""Those that hold the labels of a task, by their names."""


def fit_task(
    name: str,
    asked: TaskColumn,
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
    kind = asked.task_kind or _inferred(name, asked, columns, locate_row)
    if few_shot and asked.task_kind is None and kind.has_class_targets:
        kind = CLASSIFICATION
    form = kind.label_form
    key = f"data.tasks.{name}"
    if asked.classes and form == "number":
        raise UserError(
            f"{key}.classes: expected none of kind {kind}, got {list(asked.classes)}. Leave them "
            "away."
        )
    if len(columns) > 1 and form == "class":
        raise UserError(
            f"{key}.columns: expected one column of kind {kind}, got {list(columns)}. Use `column`."
        )
    found: dict[str, Any] = {}
    if form == "number":
        values = _vectors(columns, locate_row)
        stats = [
            moments(known) if len(known := own[train & np.isfinite(own)]) else (0.0, 1.0)
            for own in values.T
        ]
        found["vector"] = len(columns) > 1 or is_list(next(iter(columns.values())).type)
        found["means"] = tuple(mean for mean, _ in stats)
        found["stds"] = tuple(std or 1.0 for _, std in stats)
    else:
        if form == "set":
            found["separator"] = asked.separator or _separator(columns)
        found["classes"] = _classes(name, asked, columns, kind, found.get("separator"))
    fitted = FittedTask(
        asked=asked, kind=kind.name, inferred=asked.task_kind is None, labelled=0.0, **found
    )
    _, mask = encode_task(name, fitted, columns, locate_row)
    if not mask[train].any():
        raise UserError(
            f"{key}: {locate_row(0).rpartition(': ')[0]}: column '{next(iter(columns))}': expected "
            f"labels in the rows for training, got none in {int(train.sum())} rows. Correct the "
            "column, or leave the task away."
        )
    return fitted.model_copy(update={"labelled": float(mask[train].mean())})


def _inferred(name: str, asked: TaskColumn, columns: Columns, locate_row: LocateRow) -> TaskKind:
    first = next(iter(columns.values()))
    kind = plain(first).type
    if len(columns) > 1:
        flags = all(holds_flags(column) for column in columns.values())
        if flags:
            return MULTILABEL
        return REGRESSION
    if is_list(kind) and not pa.types.is_nested(kind.value_type):
        if is_number(kind.value_type):
            return REGRESSION
        return MULTILABEL
    known = texts(first).drop_null()
    different = pc.unique(known)
    if asked.classes:
        of_two = len(asked.classes) == 2 and (is_text(kind) or holds_flags(first))
        if of_two:
            return BINARY
        return CLASSIFICATION
    if pa.types.is_boolean(kind) or (
        len(different) == 2 and set(different.to_pylist()) == {"0", "1"}
    ):
        return BINARY
    if is_number(kind):
        whole = not pa.types.is_temporal(kind) and all(
            _is_whole(text) for text in different[: FEW + 1].to_pylist()
        )
        few = 2 <= len(different) <= FEW and len(known) >= 3 * len(different)
        if whole and few:
            return CLASSIFICATION
        return REGRESSION
    if is_text(kind):
        if _reused(different.to_pylist()):
            return MULTILABEL
        if len(different) == 2 and len(known) > 2:
            return BINARY
        if 2 <= len(different) <= max(FEW, len(known) / 5):
            return CLASSIFICATION
        if len(different) < 2:
            if len(different):
                got = f"'{different[0].as_py()}' alone"
            else:
                got = "no labels at all"
            raise UserError(
                f"data.tasks.{name}: {locate_row(0).rpartition(': ')[0]}: column "
                f"'{next(iter(columns))}': expected labels of two classes at least, got {got}. "
                "Correct the column, or leave the task away."
            )
        raise UserError(
            f"data.tasks.{name}: {locate_row(0).rpartition(': ')[0]}: column "
            f"'{next(iter(columns))}': expected labels that come again, got {len(different)} "
            f"different texts in {len(known)} rows. Say data.tasks.{name}.kind."
        )
    if pa.types.is_null(kind):
        return REGRESSION  # and so refused, since it has no labels
    raise UserError(
        f"data.tasks.{name}: {locate_row(0).rpartition(': ')[0]}: column '{next(iter(columns))}': "
        "expected labels that are numbers, texts or lists of them, got "
        f"{'bytes that are no texts' if is_bytes(kind) else kind}."
    )


def _reused(different: Sequence[str]) -> bool:
    """Whether the texts are made of labels between semicolons or bars, of which one at least is in
    two of them.
    """
    for mark in SEPARATORS[:2]:
        parts = [part.strip() for text in different if mark in text for part in text.split(mark)]
        alone = {text.strip() for text in different if mark not in text}
        if parts and len(parts) + len(alone) > len(alone.union(parts)):
            return True
    return False


def _is_whole(text: str) -> bool:
    return text.lstrip("-").isdigit()


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
    name: str, asked: TaskColumn, columns: Columns, kind: TaskKind, separator: str | None
) -> tuple[str, ...]:
    if kind.has_label_sets and len(columns) > 1:
        if asked.classes:
            raise UserError(
                f"data.tasks.{name}.classes: expected none beside `columns`, which are the labels."
            )
        return tuple(columns)
    column = next(iter(columns.values()))
    if asked.classes:
        classes = tuple(label_text(value) for value in asked.classes)
        if len(set(classes)) < len(classes):
            raise UserError(
                f"data.tasks.{name}.classes: expected every class once, got {list(classes)}."
            )
    elif kind.has_label_sets:
        classes = in_order({label for labels in _sets(column, separator) for label in labels or ()})
    else:
        classes = in_order(pc.unique(texts(column)).drop_null().to_pylist())
        if kind.max_classes == 2:
            classes = no_then_yes(classes)
            if len(classes) == 1 and classes[0] in ("0", "1"):
                classes = ("0", "1")
    if kind.has_label_sets:
        least = 1
    else:
        least = 2
    if len(classes) < least:
        raise UserError(
            f"data.tasks.{name}: column '{next(iter(columns))}': expected labels of {least} "
            f"classes at least, got {list(classes)}. Correct the column, name its classes, or "
            "leave the task away."
        )
    if kind.max_classes and len(classes) > kind.max_classes:
        raise UserError(
            f"data.tasks.{name}: column '{next(iter(columns))}': expected two classes of kind "
            f"{kind}, got {len(classes)}: {list(classes[:10])}. Take kind: classification."
        )
    return classes


def _sets(column: pa.ChunkedArray, separator: str | None) -> Sequence[Sequence[str] | None]:
    """The labels of each row; None where they are missing."""
    values = plain(column)
    if is_list(values.type):
        flat = iter(texts(pc.list_flatten(values)).to_pylist())
        lengths = pc.list_value_length(values).to_pylist()
        return [
            None if n is None else [v for v in (next(flat) for _ in range(n)) if v is not None]
            for n in lengths
        ]
    return [
        None
        if text is None
        else [part.strip() for part in text.split(separator or ";") if part.strip()]
        for text in texts(column).to_pylist()
    ]


def encode_task(
    name: str, fitted: FittedTask, columns: Columns, locate_row: LocateRow
) -> tuple[np.ndarray, np.ndarray]:
    """Targets [N] int64, [N] or [N, D] float64 with nan, as the task takes them; and where they
    are, [N] bool.

    Raises UserError, with file, row and column, for a label outside the classes or one that is no
    number.
    """
    form = fitted.task_kind.label_form
    first, column = next(iter(columns.items()))
    if form == "class":
        text = texts(column)
        index = pc.index_in(text, value_set=pa.array(fitted.classes, pa.string()))
        outside = pc.and_(pc.is_valid(text), pc.is_null(index)).to_numpy(zero_copy_only=False)
        if outside.any():
            row = int(outside.argmax())
            raise UserError(
                _outside(name, fitted, f"{locate_row(row)}, column '{first}'", text[row].as_py())
            )
        mask = pc.is_valid(index).to_numpy(zero_copy_only=False)
        return pc.fill_null(index, 0).to_numpy(zero_copy_only=False).astype(np.int64), mask
    if form == "set":
        target = np.full((len(column), len(fitted.classes)), np.nan, np.float32)
        if len(columns) > 1:
            for place, (label, own) in enumerate(columns.items()):
                target[:, place] = _flags(label, own, locate_row)
        else:
            places = {label: place for place, label in enumerate(fitted.classes)}
            for row, labels in enumerate(_sets(column, fitted.separator)):
                if labels is None:
                    continue
                target[row] = 0
                for label in labels:
                    if label not in places:
                        raise UserError(
                            _outside(name, fitted, f"{locate_row(row)}, column '{first}'", label)
                        )
                    target[row, places[label]] = 1
        return target, np.asarray(~np.isnan(target).all(1))
    values = _vectors(columns, locate_row)
    extreme = (np.abs(np.nan_to_num(values)) > LARGEST).any(1)
    if extreme.any():
        row = int(extreme.argmax())
        if fitted.vector:
            got = values[row].tolist()
        else:
            got = values[row, 0]
        raise UserError(
            f"{locate_row(row)}, column '{first}': expected a finite number of less than 1e38, got "
            f"{got}. Correct the label, or divide all of them."
        )
    mask = ~np.isnan(values).all(1)
    if fitted.vector:
        if values.shape[1] != len(fitted.means):
            raise UserError(
                f"{locate_row(0)}, column '{first}': expected {len(fitted.means)} numbers, got "
                f"{values.shape[1]}."
            )
        return values, mask
    return np.nan_to_num(values[:, 0], nan=fitted.means[0]), mask


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
    classes = list(fitted.classes[:10])
    if len(fitted.classes) > 10:
        more = f" and {len(fitted.classes) - 10} more"
    else:
        more = ""
    given = fitted.asked.classes or ()
    if any(isinstance(value, bool) for value in given):
        hint = " YAML reads yes and no as true and false: put the classes in quotes."
    else:
        hint = f" Correct the label, or add it to data.tasks.{name}.classes."
    if label.lstrip("0") in fitted.classes:
        hint = f" YAML reads {label} as {label.lstrip('0')}: put the classes in quotes."
    return f"{location}: expected a label of task '{name}', one of {classes}{more}, got '{label}'.{hint}"
