"""Examples of a user's own: a Parquet file of inputs and labels, read and refused (docs/adapt.md)."""

import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from raymtl.config import Experiment
from raymtl.data.checks import repeated
from raymtl.step import Problem
from raymtl.transfer import Examples
from raymtl.types import Batch, Episode, UserError


def read_support(path: Path, experiment: Experiment, problem: Problem) -> Episode:
    """Rows with a label of any task are the support set, rows without are to be predicted.

    Raises UserError naming the file, the column and the row for what does not fit the run's tasks and inputs.
    """
    table = read_table(path)
    for task in problem.tasks:
        if task.kind not in ("classification", "binary", "regression") or (
            task.kind == "regression" and task.out_features > 1
        ):
            raise UserError(
                f"{path}: expected a run all of whose labels are single numbers, and its task '{task.name}' is a "
                f"{task.kind} with {task.out_features} outputs. Adapt to an episode of its source with --episode."
            )
    names = [task.name for task in problem.tasks]
    present = [name for name in names if name in table.column_names]
    if "input" not in table.column_names or not present:
        raise UserError(
            f"{path}: expected the column `input` and at least one of the tasks {names}, got {table.column_names}."
        )
    unknown = [name for name in table.column_names if name not in ("input", *names)]
    if unknown:
        raise UserError(
            f"{path}: column `{unknown[0]}`: expected `input` or one of the tasks {names}, got another. "
            "Correct its name or leave it away."
        )
    inputs = _inputs(path, table, experiment) if len(table) else torch.zeros(0)
    missing = [name for name in names if name not in present or table[name].null_count == len(table)]
    if missing and not problem.learner.predicts_unadapted:
        raise UserError(
            f"{path}: column `{missing[0]}`: expected labels, of which {experiment.learner.name} makes its "
            "predictions, got none."
        )
    columns = {name: table[name].to_pylist() if name in present else [None] * len(table) for name in names}
    labelled = torch.tensor([any(columns[n][row] is not None for n in names) for row in range(len(table))])
    if not len(table) or not labelled.any():
        raise UserError(f"{path}: expected rows with labels to adapt to, got none in {present}.")
    _check_apart(path, inputs, labelled)
    targets, masks = {}, {}
    for task in problem.tasks:
        for row, value in enumerate(columns[task.name]):
            _check_label(path, task, row, value)
        masks[task.name] = torch.tensor([value is not None for value in columns[task.name]])
        kind = torch.int64 if task.kind == "classification" else torch.get_default_dtype()
        targets[task.name] = torch.tensor([value or 0 for value in columns[task.name]], dtype=kind)
    parts = (labelled, ~labelled)
    return Episode(
        *(Batch(inputs[p], {n: targets[n][p] for n in names}, {n: masks[n][p] for n in names}) for p in parts)
    )


def read_examples(path: Path, experiment: Experiment, column: str | None) -> tuple[str, Examples, Tensor]:
    """The column of labels, the rows with a label, and the inputs [N, ...] of those without, which are to be predicted.

    `column` may be left away where there is only one beside `input`. Labels are any numbers. Raises UserError naming
    the file, the column and the row.
    """
    table = read_table(path)
    others = [name for name in table.column_names if name != "input"]
    if "input" not in table.column_names or not others:
        raise UserError(f"{path}: expected the column `input` and one of labels, got {table.column_names}.")
    if column is None and len(others) > 1:
        raise UserError(f"{path}: expected task.name to say which of the columns {others} holds the labels, got none.")
    chosen = column or others[0]
    if chosen not in others:
        raise UserError(f"{path}: task.name: expected one of the columns {others}, got '{chosen}'.")
    labels = table[chosen].to_pylist()
    for row, value in enumerate(labels):
        if value is not None and not is_number(value):
            raise UserError(f"{path}: row {row}, column `{chosen}`: expected a number or null, got {value!r}.")
    if all(value is None for value in labels):
        raise UserError(f"{path}: column `{chosen}`: expected rows with labels to learn from, got none.")
    inputs = _inputs(path, table, experiment)
    inputs = inputs.to(torch.get_default_dtype()) / 255 if experiment.data.pictures else inputs
    known = torch.tensor([value is not None for value in labels])
    _check_apart(path, inputs, known)
    targets = torch.tensor([value for value in labels if value is not None], dtype=torch.float64)
    return chosen, Examples(inputs[known], targets), inputs[~known]


def read_table(path: Path) -> pa.Table:
    """Raises UserError where there is no Parquet file."""
    try:
        return pq.ParquetFile(path).read()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file. Give a Parquet file with the column `input` and one a task.") from None
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: expected a Parquet file, got something else ({error}).") from None


def _inputs(path: Path, table: pa.Table, experiment: Experiment) -> Tensor:
    size = torch.Size(experiment.data.input_shape).numel()
    rows = table["input"].to_pylist()
    for row, values in enumerate(rows):
        if not isinstance(values, list) or len(values) != size:
            got = f"{len(values)} values" if isinstance(values, list) else repr(values)
            raise UserError(
                f"{path}: row {row}, column `input`: expected a list of {size} numbers "
                f"(shape {list(experiment.data.input_shape)}, row-major), got {got}."
            )
        odd = next((value for value in values if not is_number(value)), 0)
        if odd != 0:
            raise UserError(f"{path}: row {row}, column `input`: expected numbers, got {odd!r}.")
    inputs = torch.tensor(rows, dtype=torch.float64).reshape(len(rows), *experiment.data.input_shape)
    if experiment.data.pictures:
        if inputs.min() < 0 or inputs.max() > 255:
            raise UserError(f"{path}: column `input`: expected numbers from 0 to 255, got others.")
        return inputs.round().byte()
    inputs = inputs.to(torch.get_default_dtype())
    if not inputs.isfinite().all():
        raise UserError(f"{path}: column `input`: expected numbers that {inputs.dtype} can hold, got larger ones.")
    return inputs


def _check_apart(path: Path, inputs: Tensor, labelled: Tensor) -> None:
    both = repeated(inputs, labelled)
    if both:
        raise UserError(
            f"{path}: row {both[0]}: expected an input to predict that is not among those with a label, got that of "
            f"row {both[1]}. Leave one of the two rows away."
        )


def _check_label(path: Path, task: Any, row: int, value: Any) -> None:
    if value is None:
        return
    where = f"{path}: row {row}, column `{task.name}`"
    if not is_number(value):
        raise UserError(f"{where}: expected a number or null, got {value!r}.")
    if task.kind == "binary" and value not in (0, 1):
        raise UserError(f"{where}: expected 0 or 1, got {value!r}.")
    if task.kind == "classification" and (value != int(value) or not 0 <= value < task.out_features):
        raise UserError(f"{where}: expected a class from 0 to {task.out_features - 1}, got {value!r}.")


def is_number(value: Any) -> bool:
    """Whether it is one that can be computed with."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
