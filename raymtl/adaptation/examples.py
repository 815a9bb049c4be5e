"""Examples of a user's own: files of inputs and labels, read and refused (docs/adapt.md)."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from raymtl.adaptation.transfer import Examples
from raymtl.config import Experiment
from raymtl.data import Files, Several, Source
from raymtl.data.episodes import build_episodes, generator
from raymtl.data.overlap import repeated
from raymtl.data.tables.row_origins import RowOrigins, held_out
from raymtl.data.tables.sampling import query_rows
from raymtl.notes import Note
from raymtl.step.algorithm import Algorithm
from raymtl.types import Batch, Episode, Task, UserError

LARGEST = 1e38
"""Of a label that a model can learn, in float32."""


class Support(NamedTuple):
    """Labelled rows to adapt to and rows to predict, and the names of the classes where they have
    any.
    """

    episode: Episode
    classes: Mapping[str, tuple[str, ...]]
    asked: RowOrigins
    """Which rows are predicted."""
    notes: Sequence[Note]


class Given(NamedTuple):
    """What is adapted to and what is predicted."""

    domain: str
    folder: str
    """Its name below RUN/adapted, unless one is given."""
    episode: Episode
    classes: Mapping[str, tuple[str, ...]]
    """Of the tasks whose classes the examples name."""
    asked: RowOrigins
    notes: Sequence[Note] = ()


class _Rows(NamedTuple):
    inputs: Tensor
    targets: Mapping[str, Tensor]
    masks: Mapping[str, Tensor]
    classes: Mapping[str, tuple[str, ...]]
    asked: RowOrigins
    notes: Sequence[Note] = ()

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


def read_support(
    path: Path,
    experiment: Experiment,
    algorithm: Algorithm,
    query: Path | None = None,
    task: str | None = None,
) -> Support:
    """Rows with a label of any task are the support set; those without are to be predicted, or all
    of another file.

    For a run on the user's own files both are in the form of these; `task` says of which task alone
    they have labels. Raises UserError naming the file, the column and the row for what does not fit
    the run's tasks and inputs.
    """
    form = form_of(experiment.data, path, task)

    def read(file: Path, classes: Mapping[str, tuple[str, ...]]) -> _Rows:
        if form is None:
            return _rows(file, experiment, algorithm)
        return _own_rows(file, form, algorithm, classes)

    rows = read(path, {})
    labelled = rows.labelled
    missing = [name for name, mask in rows.masks.items() if not mask.any()]
    if missing and labelled.any() and not algorithm.learner.supports_zero_shot:
        raise UserError(
            f"{path}: column `{missing[0]}`: expected labels, of which {experiment.learner.name} "
            "makes its predictions, got none."
        )
    if not labelled.any():
        raise UserError(
            f"{path}: expected rows with labels to adapt to, got none in {list(rows.masks)}."
        )
    # Rows of a table may well be alike: few columns of few values say little else.
    if form is None or form.files.is_image:
        _check_apart(path, rows.inputs, labelled)
    if query is None:
        own = Episode(rows.part(labelled), rows.part(~labelled))
        return Support(own, rows.classes, rows.asked.at((~labelled).numpy()), rows.notes)
    others = read(query, rows.classes)
    everything = others.part(torch.ones(len(others.inputs), dtype=torch.bool))
    notes = list(dict.fromkeys((*rows.notes, *others.notes)))
    return Support(Episode(rows.part(labelled), everything), rows.classes, others.asked, notes)


class Form(NamedTuple):
    """In the form of which files examples are given, and what stands before the names of their
    tasks in the run.
    """

    files: Files
    prefix: str = ""


def form_of(data: Source, path: Path, task: str | None) -> Form | None:
    """That of the run's files, with `task` alone where it is given; None where a run is on none of
    the user's.

    Raises UserError where only `--task` can say in the form of which part, or of which task, the
    examples are.
    """
    if task is not None and task not in data.task_names:
        raise UserError(
            f"--task: expected one of {', '.join(data.task_names)}, got '{task}'. Correct the name."
        )
    if isinstance(data, Files):
        if task is None:
            _check_told_apart(data, path)
        return Form(data if task is None else data.select_tasks((task,)))
    if not isinstance(data, Several):
        if task is not None:
            raise UserError(
                "--task: expected a run on files of its user's, whose tasks have files of their "
                "own."
            )
        return None
    parts = {name: part for name, part in data.parts.items() if isinstance(part, Files)}
    if task is None:
        if not parts:
            return None
        if len(parts) > 1:
            raise UserError(
                f"{path}: expected --task to say in the form of which of the parts "
                f"{', '.join(parts)} it is, got none. Add --task with one of "
                f"{', '.join(data.task_names)}."
            )
        ((name, part),) = parts.items()
        return Form(part, f"{name}_")
    name, own = data.part_of(task)
    if name not in parts:
        raise UserError(
            f"--task: expected a task of one of {', '.join(parts)}, got '{task}'. Correct the name."
        )
    return Form(parts[name].select_tasks((own,)), f"{name}_")


def _check_told_apart(data: Files, path: Path) -> None:
    """Raises UserError where the labels of tasks that have files of their own stand in columns of
    the same name.
    """
    from raymtl.data.tables.column_names import label_columns

    owners: dict[tuple[str, ...], str] = {}
    for name, asked in data.tasks.items():
        if not asked.path or data.key:
            continue
        columns = label_columns(name, asked)
        other = owners.setdefault(columns, name)
        if other != name:
            raise UserError(
                f"{path}: expected --task to say of which task the labels in '{columns[0]}' are, "
                f"for '{other}' and '{name}' each have a file of their own with this column. Add "
                f"--task {other} or --task {name}."
            )


def _own_rows(
    path: Path, form: Form, algorithm: Algorithm, classes: Mapping[str, tuple[str, ...]]
) -> _Rows:
    """Of a table or a folder as the run was trained on."""
    from raymtl.data.tables.new_rows import read_unseen

    given = {name.removeprefix(form.prefix): labels for name, labels in classes.items()}
    found = read_unseen(form.files, str(path), given or None)
    number = len(found.inputs)
    targets, masks = {}, {}
    for task in algorithm.tasks:
        own = task.name.removeprefix(form.prefix)
        there = own in found.targets and task.name == form.prefix + own
        if there:
            targets[task.name] = torch.from_numpy(found.targets[own])
        else:
            targets[task.name] = task.missing_targets(number)
        if there:
            masks[task.name] = torch.from_numpy(found.masks[own])
        else:
            masks[task.name] = torch.zeros(number, dtype=torch.bool)
    named = {form.prefix + name: labels for name, labels in found.classes.items()}
    return _Rows(torch.from_numpy(found.inputs), targets, masks, named, found.asked, found.notes)


def _rows(path: Path, experiment: Experiment, algorithm: Algorithm) -> _Rows:
    """Of a Parquet file with the column `input` and one a task."""
    table = read_table(path)
    for task in algorithm.tasks:
        if task.target_shape or task.kind.is_dense:
            raise UserError(
                f"{path}: expected a run all of whose labels are single numbers, and its task "
                f"'{task.name}' is {task.kind.described} with {task.out_features} outputs. Adapt to an "
                "episode of its source with --episode."
            )
    names = [task.name for task in algorithm.tasks]
    present = [name for name in names if name in table.column_names]
    if "input" not in table.column_names or not present:
        raise UserError(
            f"{path}: expected the column `input` and at least one of the tasks {names}, got "
            f"{table.column_names}."
        )
    unknown = [name for name in table.column_names if name not in ("input", *names)]
    if unknown:
        raise UserError(
            f"{path}: column `{unknown[0]}`: expected `input` or one of the tasks {names}, got "
            "another. Correct its name or leave it away."
        )
    if not len(table):
        raise UserError(f"{path}: expected rows with labels to adapt to, got none in {present}.")
    inputs = _inputs(path, table, experiment)
    columns = {
        name: table[name].to_pylist() if name in present else [None] * len(table) for name in names
    }
    targets, masks = {}, {}
    for task in algorithm.tasks:
        for row, value in enumerate(columns[task.name]):
            _check_label(path, task, row, value)
        masks[task.name] = torch.tensor([value is not None for value in columns[task.name]])
        if task.kind.has_integer_targets:
            dtype = torch.int64
        else:
            dtype = torch.float64
        targets[task.name] = torch.tensor([value or 0 for value in columns[task.name]], dtype=dtype)
    return _Rows(inputs, targets, masks, {}, RowOrigins(np.arange(len(inputs))))


def drawn_episode(experiment: Experiment, episode: int) -> Given:
    """A held-out test episode of the source, with the names of its query rows where these are of
    the user's files.
    """
    data = experiment.data
    arrays = data.load()
    drawn, domains = build_episodes(
        data, arrays, seed=experiment.seed, split="test", step=0, indices=[episode]
    )
    one = tree_map(lambda leaf: leaf[0], drawn[0])
    asked = RowOrigins(np.arange(count_of(one.query)))
    classes: Mapping[str, tuple[str, ...]] = {}
    if isinstance(data, Files):
        rows, names = query_rows(
            data, arrays, "test", generator(experiment.seed, "test", 0, episode)
        )
        asked = held_out(data, rows) or asked
        if names:
            classes = dict.fromkeys(data.task_names, names)
        else:
            classes = {}
    return Given(domains[0], f"episode-{episode}", one, classes, asked)


def count_of(batch: Batch) -> int:
    """Examples; of tasks with inputs of their own the most that one has."""
    if isinstance(batch.inputs, Tensor):
        return len(batch.inputs)
    return max(len(inputs) for inputs in batch.inputs.values())


class NewTask(NamedTuple):
    """The column of a new task's labels, the examples that have one, and the rows that are to be
    predicted.
    """

    column: str
    examples: Examples
    inputs: Tensor
    """[N, ...], of what is to be predicted."""
    targets: Tensor
    """[N] of these, nan where there is none."""
    asked: RowOrigins
    classes: tuple[str, ...]
    """By their numbers; none where labels are numbers."""
    notes: Sequence[Note] = ()


def read_examples(
    path: Path,
    experiment: Experiment,
    column: str | None,
    *,
    of_classes: bool,
    query: Path | None = None,
    task: str | None = None,
) -> NewTask:
    """Rows with a label, and those that are to be predicted: without one, or all of another file.

    `column` may be left away where there is only one beside the inputs. Labels are any numbers, and
    for a run on the user's own files any classes; `task` says in the form of whose files they are,
    as for `read_support`. Raises UserError naming the file, the column and the row.
    """
    if task is None and isinstance(experiment.data, Files):
        form: Form | None = Form(
            experiment.data
        )  # whose tasks need not be told apart: none of them is read
    else:
        form = form_of(experiment.data, path, task)
    if form:
        read = _own_labels(form.files, of_classes)
    else:
        read = _plain_labels(experiment)
    found = read(path, column, None)
    known = ~found.targets.isnan()
    if not known.any():
        raise UserError(
            f"{path}: column `{found.column}`: expected rows with labels to learn from, got none."
        )
    if form is None:
        _check_apart(path, found.inputs, known)
    if len(found.classes) == 1:
        raise UserError(
            f"{path}: column `{found.column}`: expected labels of at least two classes, got "
            f"'{found.classes[0]}' alone. Give examples of another class too."
        )
    examples = Examples(found.inputs[known], found.targets[known])
    if query is None:
        asked, inputs, targets = (
            found.asked.at((~known).numpy()),
            found.inputs[~known],
            found.targets[~known],
        )
    else:
        others = read(query, found.column, found)
        asked, inputs, targets = others.asked, others.inputs, others.targets
        found = found._replace(notes=list(dict.fromkeys((*found.notes, *others.notes))))
    return NewTask(found.column, examples, inputs, targets, asked, found.classes, found.notes)


class _Labels(NamedTuple):
    column: str
    inputs: Tensor
    targets: Tensor
    """[N] float64, nan where there is none."""
    classes: tuple[str, ...]
    asked: RowOrigins
    notes: Sequence[Note] = ()


_Read = Callable[[Path, str | None, _Labels | None], _Labels]
"""File, column and, where the file is that to be predicted, the examples -> its rows."""


def _own_labels(data: Files, of_classes: bool) -> _Read:
    from raymtl.data.tables.new_rows import read_new_labels

    def read(path: Path, column: str | None, examples: _Labels | None) -> _Labels:
        if examples is None or not of_classes:
            classes = None
        else:
            classes = examples.classes
        found = read_new_labels(
            data,
            str(path),
            column,
            of_classes=of_classes,
            classes=classes,
            optional=examples is not None,
        )
        inputs, targets = _scaled(torch.from_numpy(found.inputs)), torch.from_numpy(found.targets)
        return _Labels(found.column, inputs, targets, found.classes, found.asked, found.notes)

    return read


def _plain_labels(experiment: Experiment) -> _Read:
    def read(path: Path, column: str | None, examples: _Labels | None) -> _Labels:
        chosen, inputs, labels = _labelled(path, experiment, column, optional=examples is not None)
        targets = torch.tensor(
            [math.nan if value is None else value for value in labels], dtype=torch.float64
        )
        return _Labels(chosen, inputs, targets, (), RowOrigins(np.arange(len(inputs))))

    return read


def _labelled(
    path: Path, experiment: Experiment, column: str | None, *, optional: bool
) -> tuple[str, Tensor, list[Any]]:
    """The column, the inputs [N, ...] and the labels, of which there need be none where they are
    `optional`.
    """
    table = read_table(path)
    others = [name for name in table.column_names if name != "input"]
    if "input" not in table.column_names or not (others or optional):
        raise UserError(
            f"{path}: expected the column `input` and one of labels, got {table.column_names}."
        )
    if optional and column is not None and column not in others:
        return column, _scaled(_inputs(path, table, experiment)), [None] * len(table)
    if column is None and len(others) > 1:
        raise UserError(
            f"{path}: expected task.name to say which of the columns {others} holds the labels, "
            "got none."
        )
    chosen = column or others[0]
    if chosen not in others:
        raise UserError(f"{path}: task.name: expected one of the columns {others}, got '{chosen}'.")
    labels = table[chosen].to_pylist()
    for row, value in enumerate(labels):
        if value is not None and not is_number(value):
            raise UserError(
                f"{path}: row {row}, column `{chosen}`: expected a number or null, got {value!r}."
            )
        if value is not None and abs(value) > LARGEST:
            raise UserError(
                f"{path}: row {row}, column `{chosen}`: expected a number of less than "
                f"{LARGEST:g}, got {value!r}."
            )
    if not optional and all(value is None for value in labels):
        raise UserError(
            f"{path}: column `{chosen}`: expected rows with labels to learn from, got none."
        )
    return chosen, _scaled(_inputs(path, table, experiment)), labels


def _scaled(inputs: Tensor) -> Tensor:
    """In the default precision; pictures from 0 to 1."""
    numbers = inputs.to(torch.get_default_dtype())
    if inputs.dtype == torch.uint8:
        return numbers / 255
    return numbers


def read_table(path: Path) -> pa.Table:
    """Raises UserError where there is no Parquet file."""
    try:
        return pq.ParquetFile(path).read()
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such file. Give a Parquet file with the column `input` and one a task."
        ) from None
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: expected a Parquet file, got something else ({error}).") from None


def _inputs(path: Path, table: pa.Table, experiment: Experiment) -> Tensor:
    size = torch.Size(experiment.data.input_shape).numel()
    rows = table["input"].to_pylist()
    for row, values in enumerate(rows):
        if not isinstance(values, list) or len(values) != size:
            if isinstance(values, list):
                got = f"{len(values)} values"
            else:
                got = repr(values)
            raise UserError(
                f"{path}: row {row}, column `input`: expected a list of {size} numbers "
                f"(shape {list(experiment.data.input_shape)}, row-major), got {got}."
            )
        odd = next((value for value in values if not is_number(value)), 0)
        if odd != 0:
            raise UserError(f"{path}: row {row}, column `input`: expected numbers, got {odd!r}.")
    inputs = torch.tensor(rows, dtype=torch.float64).reshape(
        len(rows), *experiment.data.input_shape
    )
    if experiment.data.is_image:
        if ((inputs < 0) | (inputs > 255)).any():
            raise UserError(f"{path}: column `input`: expected numbers from 0 to 255, got others.")
        return inputs.round().byte()
    inputs = inputs.to(torch.get_default_dtype())
    if not inputs.isfinite().all():
        raise UserError(
            f"{path}: column `input`: expected numbers that {inputs.dtype} can hold, got larger "
            "ones."
        )
    return inputs


def _check_apart(path: Path, inputs: Tensor, labelled: Tensor) -> None:
    both = repeated(inputs, labelled)
    if both:
        raise UserError(
            f"{path}: row {both[0]}: expected an input to predict that is not among those with a "
            f"label, got that of row {both[1]}. Leave one of the two rows away."
        )


def _check_label(path: Path, task: Task, row: int, value: Any) -> None:
    if value is None:
        return
    where = f"{path}: row {row}, column `{task.name}`"
    if not is_number(value):
        raise UserError(f"{where}: expected a number or null, got {value!r}.")
    if abs(value) > LARGEST:
        raise UserError(f"{where}: expected a number of less than {LARGEST:g}, got {value!r}.")
    expected = task.kind.expected_label(value, task.out_features)
    if expected:
        raise UserError(f"{where}: expected {expected}, got {value!r}.")


def is_number(value: Any) -> bool:
    """Whether it is one that can be computed with."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
