"""Examples in a Parquet file with the column `input` and one a task (docs/adapt.md)."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from raymtl.adaptation.rows import LabelledRows, NewLabels, scaled
from raymtl.config import Experiment
from raymtl.data.tables.row_origins import RowOrigins
from raymtl.types import Task, UserError

INPUT = "input"
LARGEST = 1e38
"""Of a label that a model can learn, in float32."""


def read_rows(
    path: Path, experiment: Experiment, tasks: Sequence[Task], *, unlabelled: bool = False
) -> LabelledRows:
    """The rows with their labels of the run's tasks, which may lack where they are `unlabelled`.

    Raises UserError naming the file, the column and the row for what does not fit these.
    """
    table = _read_table(path)
    names = [task.name for task in tasks]
    if unlabelled and table.column_names == [INPUT]:
        present = []
    else:
        present = _task_columns(path, table, names)
    for task in tasks:
        if (task.target_shape or task.kind.is_dense) and (present or not unlabelled):
            raise UserError(
                f"{path}: expected a run all of whose labels are single numbers, and its task "
                f"'{task.name}' is {task.kind.described} with {task.out_features} outputs. Adapt "
                "to an episode of its source with --episode."
            )
    if not len(table):
        raise UserError(f"{path}: expected rows with labels to adapt to, got none in {present}.")
    inputs = _inputs(path, table, experiment)
    targets, masks = {}, {}
    for task in tasks:
        if task.name not in present:
            targets[task.name] = task.missing_targets(len(table))
            masks[task.name] = torch.zeros(len(table), dtype=torch.bool)
            continue
        labels = table[task.name].to_pylist()
        targets[task.name] = _targets(path, task, labels)
        masks[task.name] = torch.tensor([label is not None for label in labels])
    return LabelledRows(inputs, targets, masks, {}, RowOrigins(np.arange(len(inputs))))


def read_new_labels(
    path: Path, experiment: Experiment, column: str | None, *, optional: bool
) -> NewLabels:
    """The rows with their labels of a new task, of which there need be none where they are
    `optional`. `column` may be omitted where there is only one beside the inputs.
    """
    table = _read_table(path)
    others = [name for name in table.column_names if name != INPUT]
    if INPUT not in table.column_names or not (others or optional):
        raise UserError(
            f"{path}: expected the column `{INPUT}` and one of labels, got {table.column_names}."
        )
    if optional and column is not None and column not in others:
        chosen = column
        labels = [None] * len(table)
    else:
        chosen = _label_column(path, others, column)
        labels = table[chosen].to_pylist()
        for row, label in enumerate(labels):
            if label is not None:
                _check_number(f"{path}: row {row}, column `{chosen}`", label)
        if not optional and all(label is None for label in labels):
            raise UserError(
                f"{path}: column `{chosen}`: expected rows with labels to learn from, got none."
            )
    inputs = scaled(_inputs(path, table, experiment))
    numbers = [math.nan if label is None else label for label in labels]
    targets = torch.tensor(numbers, dtype=torch.float64)
    return NewLabels(chosen, inputs, targets, (), RowOrigins(np.arange(len(inputs))))


def _read_table(path: Path) -> pa.Table:
    """Raises UserError where there is no Parquet file."""
    try:
        return pq.ParquetFile(path).read()
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such file. Give a Parquet file with the column `input` and one a task."
        ) from None
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: expected a Parquet file, got something else ({error}).") from None


def _task_columns(path: Path, table: pa.Table, names: Sequence[str]) -> list[str]:
    """The tasks that have a column. Raises UserError for other columns and for none."""
    present = [name for name in names if name in table.column_names]
    if INPUT not in table.column_names or not present:
        raise UserError(
            f"{path}: expected the column `{INPUT}` and at least one of the tasks {names}, got "
            f"{table.column_names}."
        )
    unknown = [name for name in table.column_names if name not in (INPUT, *names)]
    if unknown:
        raise UserError(
            f"{path}: column `{unknown[0]}`: expected `{INPUT}` or one of the tasks {names}, got "
            "another. Correct its name or leave it away."
        )
    return present


def _label_column(path: Path, others: Sequence[str], column: str | None) -> str:
    if column is None and len(others) > 1:
        raise UserError(
            f"{path}: expected task.name to say which of the columns {others} holds the labels, "
            "got none."
        )
    chosen = column or others[0]
    if chosen not in others:
        raise UserError(f"{path}: task.name: expected one of the columns {others}, got '{chosen}'.")
    return chosen


def _targets(path: Path, task: Task, labels: Sequence[Any]) -> Tensor:
    """[N], 0 where there is no label. Raises UserError for what cannot be one."""
    for row, label in enumerate(labels):
        if label is None:
            continue
        where = f"{path}: row {row}, column `{task.name}`"
        _check_number(where, label)
        expected = task.kind.expected_label(label, task.out_features)
        if expected:
            raise UserError(f"{where}: expected {expected}, got {label!r}.")
    if task.kind.has_integer_targets:
        dtype = torch.int64
    else:
        dtype = torch.float64
    return torch.tensor([label or 0 for label in labels], dtype=dtype)


def _check_number(where: str, label: Any) -> None:
    if not _is_number(label):
        raise UserError(f"{where}: expected a number or null, got {label!r}.")
    if abs(label) > LARGEST:
        raise UserError(f"{where}: expected a number of less than {LARGEST:g}, got {label!r}.")


def _inputs(path: Path, table: pa.Table, experiment: Experiment) -> Tensor:
    """[N, *input_shape]; pictures as bytes."""
    shape = experiment.data.input_shape
    rows = table[INPUT].to_pylist()
    for row, values in enumerate(rows):
        _check_input(f"{path}: row {row}, column `{INPUT}`", values, shape)
    inputs = torch.tensor(rows, dtype=torch.float64).reshape(len(rows), *shape)
    if experiment.data.is_image:
        if ((inputs < 0) | (inputs > 255)).any():
            raise UserError(
                f"{path}: column `{INPUT}`: expected numbers from 0 to 255, got others."
            )
        return inputs.round().byte()
    inputs = inputs.to(torch.get_default_dtype())
    if not inputs.isfinite().all():
        raise UserError(
            f"{path}: column `{INPUT}`: expected numbers that {inputs.dtype} can hold, got larger "
            "ones."
        )
    return inputs


def _check_input(where: str, values: Any, shape: tuple[int, ...]) -> None:
    size = torch.Size(shape).numel()
    if not isinstance(values, list) or len(values) != size:
        if isinstance(values, list):
            got = f"{len(values)} values"
        else:
            got = repr(values)
        raise UserError(
            f"{where}: expected a list of {size} numbers (shape {list(shape)}, row-major), got "
            f"{got}."
        )
    for value in values:
        if not _is_number(value):
            raise UserError(f"{where}: expected numbers, got {value!r}.")


def _is_number(value: Any) -> bool:
    """Whether it is one that can be computed with."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
