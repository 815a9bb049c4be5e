"""Examples of a user's own: files of inputs and labels, read and refused (docs/adapt.md)."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from raymtl.config import Experiment
from raymtl.data import Files
from raymtl.data.checks import repeated
from raymtl.step import Problem
from raymtl.transfer import Examples
from raymtl.types import Batch, Episode, UserError


class Support(NamedTuple):
    """Labelled rows to adapt to and rows to predict, and the names of the classes where they have any."""

    episode: Episode
    classes: Mapping[str, tuple[str, ...]]


class _Rows(NamedTuple):
    inputs: Tensor
    targets: Mapping[str, Tensor]
    masks: Mapping[str, Tensor]
    classes: Mapping[str, tuple[str, ...]]

    def part(self, rows: Tensor) -> Batch:
        return Batch(
            self.inputs[rows],
            {name: target[rows] for name, target in self.targets.items()},
            {name: mask[rows] for name, mask in self.masks.items()},
        )

    @property
    def labelled(self) -> Tensor:
        """Which rows have a label of any task, [N]."""
        return torch.stack([*self.masks.values()]).any(0)


def read_support(path: Path, experiment: Experiment, problem: Problem, query: Path | None = None) -> Support:
    """Rows with a label of any task are the support set; those without are to be predicted, or all of another file.

    For a run on the user's own files both are in the form of these. Raises UserError naming the file, the column and
    the row for what does not fit the run's tasks and inputs.
    """
    own = isinstance(experiment.data, Files)
    read = _own_rows if own else _rows
    rows = read(path, experiment, problem, {})
    labelled = rows.labelled
    missing = [name for name, mask in rows.masks.items() if not mask.any()]
    if missing and labelled.any() and not problem.learner.predicts_unadapted:
        raise UserError(
            f"{path}: column `{missing[0]}`: expected labels, of which {experiment.learner.name} makes its "
            "predictions, got none."
        )
    if not labelled.any():
        raise UserError(f"{path}: expected rows with labels to adapt to, got none in {list(rows.masks)}.")
    # Rows of a table may well be alike: few columns of few values say little else.
    if not own or experiment.data.pictures:
        _check_apart(path, rows.inputs, labelled)
    asked = rows.part(~labelled)
    if query is not None:
        others = read(query, experiment, problem, rows.classes)
        asked = others.part(torch.ones(len(others.inputs), dtype=torch.bool))
    return Support(Episode(rows.part(labelled), asked), rows.classes)


def _own_rows(path: Path, experiment: Experiment, problem: Problem, classes: Mapping[str, tuple[str, ...]]) -> _Rows:
    """Of a table or a folder as the run was trained on."""
    from raymtl.data.files.unseen import read_unseen

    assert isinstance(experiment.data, Files)
    found = read_unseen(experiment.data, str(path), classes or None)
    number = len(found.inputs)
    targets, masks = {}, {}
    for task in problem.tasks:
        whole = task.kind in ("classification", "segmentation")
        nothing = torch.zeros(number, *task.target_shape, dtype=torch.int64 if whole else torch.get_default_dtype())
        there = task.name in found.targets
        targets[task.name] = torch.from_numpy(found.targets[task.name]) if there else nothing
        masks[task.name] = torch.from_numpy(found.masks[task.name]) if there else torch.zeros(number, dtype=torch.bool)
    return _Rows(torch.from_numpy(found.inputs), targets, masks, found.classes)


def _rows(path: Path, experiment: Experiment, problem: Problem, classes: Mapping[str, tuple[str, ...]]) -> _Rows:
    """Of a Parquet file with the column `input` and one a task."""
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
    if not len(table):
        raise UserError(f"{path}: expected rows with labels to adapt to, got none in {present}.")
    inputs = _inputs(path, table, experiment)
    columns = {name: table[name].to_pylist() if name in present else [None] * len(table) for name in names}
    targets, masks = {}, {}
    for task in problem.tasks:
        for row, value in enumerate(columns[task.name]):
            _check_label(path, task, row, value)
        masks[task.name] = torch.tensor([value is not None for value in columns[task.name]])
        kind = torch.int64 if task.kind == "classification" else torch.get_default_dtype()
        targets[task.name] = torch.tensor([value or 0 for value in columns[task.name]], dtype=kind)
    return _Rows(inputs, targets, masks, {})


class NewTask(NamedTuple):
    """The column of a new task's labels, the examples that have one, and the inputs [N, ...] of those to predict."""

    column: str
    examples: Examples
    asked: Tensor
    classes: tuple[str, ...]
    """By their numbers; none where labels are numbers."""


def read_examples(
    path: Path, experiment: Experiment, column: str | None, *, of_classes: bool, query: Path | None = None
) -> NewTask:
    """Rows with a label, and those that are to be predicted: without one, or all of another file.

    `column` may be left away where there is only one beside the inputs. Labels are any numbers, and for a run on the
    user's own files any classes. Raises UserError naming the file, the column and the row.
    """
    if isinstance(experiment.data, Files):
        return _own_examples(path, experiment.data, column, of_classes, query)
    chosen, inputs, labels = _labelled(path, experiment, column)
    known = torch.tensor([value is not None for value in labels])
    _check_apart(path, inputs, known)
    targets = torch.tensor([value for value in labels if value is not None], dtype=torch.float64)
    asked = inputs[~known] if query is None else _scaled(_inputs(query, read_table(query), experiment))
    return NewTask(chosen, Examples(inputs[known], targets), asked, ())


def _own_examples(path: Path, data: Files, column: str | None, of_classes: bool, query: Path | None) -> NewTask:
    from raymtl.data.files.unseen import read_new_labels, read_unseen

    found = read_new_labels(data, str(path), column, of_classes=of_classes)
    known = ~torch.from_numpy(found.targets).isnan()
    if not known.any():
        raise UserError(f"{path}: column `{found.column}`: expected rows with labels to learn from, got none.")
    inputs = _scaled(torch.from_numpy(found.inputs))
    asked = inputs[~known]
    if query is not None:
        asked = _scaled(torch.from_numpy(read_unseen(data.with_tasks(()), str(query)).inputs))
    return NewTask(found.column, Examples(inputs[known], torch.from_numpy(found.targets)[known]), asked, found.classes)


def _labelled(path: Path, experiment: Experiment, column: str | None) -> tuple[str, Tensor, list[Any]]:
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
    return chosen, _scaled(_inputs(path, table, experiment)), labels


def _scaled(inputs: Tensor) -> Tensor:
    """In the default precision; pictures from 0 to 1."""
    numbers = inputs.to(torch.get_default_dtype())
    return numbers / 255 if inputs.dtype == torch.uint8 else numbers


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
