"""Examples to adapt a run to: a user's files, or a held-out episode (docs/adapt.md)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from raymtl.adaptation.plain_table import read_rows
from raymtl.adaptation.rows import LabelledRows, check_not_repeated
from raymtl.config import Experiment
from raymtl.data import Files, Several, Source, files_of
from raymtl.data.episodes import build_episodes, generators
from raymtl.data.tables.row_origins import RowOrigins, held_out
from raymtl.data.tables.sampling import query_rows
from raymtl.step.algorithm import Algorithm
from raymtl.storage.notes import Note
from raymtl.types import Batch, Episode, Task, UserError

if TYPE_CHECKING:
    from raymtl.data.tables.new_rows import NewRows, Unseen

ClassNames = Mapping[str, tuple[str, ...]]
"""Of tasks, by their numbers."""


class AdaptationExamples(NamedTuple):
    """An episode: its support set is learned from, its query set is predicted."""

    domain: str
    folder: str
    """The folder below RUN/adapted, unless one is given."""
    episode: Episode
    class_names: ClassNames
    """Of the tasks whose classes the examples name."""
    query_origins: RowOrigins
    """Which rows of the user's files the query set is."""
    notes: Sequence[Note] = ()


class FilesFormat(NamedTuple):
    """The run's files in whose form examples are given."""

    files: Files
    prefix: str = ""
    """What stands before the names of their tasks in the run."""

    def read(self, path: Path, tasks: Sequence[Task], class_names: ClassNames) -> LabelledRows:
        """A table or a folder as the run was trained on; `class_names` are those that other rows
        of the same episode have.
        """
        from raymtl.data.tables.new_rows import read_unseen

        return self.labelled(read_unseen(self.files, str(path), self.own_names(class_names)), tasks)

    def open(self, path: str, class_names: ClassNames, piece_bytes: int) -> "NewRows":
        """The same, to be read block by block, and CSV files larger than `piece_bytes` in pieces.

        Values that a column of categories did not have are refused.
        """
        from raymtl.data.tables.new_rows import NewRows

        rows = NewRows(self.files, path, self.own_names(class_names), piece_bytes)
        rows.known_values_only = True
        return rows

    def own_names(self, class_names: ClassNames) -> ClassNames | None:
        """The names of classes by the files' own names of tasks; None where there are none."""
        own = {name.removeprefix(self.prefix): each for name, each in class_names.items()}
        return own or None

    def labelled(self, unseen: "Unseen", tasks: Sequence[Task]) -> LabelledRows:
        """Rows that were read, as tensors for all tasks."""
        number = len(unseen.inputs)
        targets, masks = {}, {}
        for task in tasks:
            own = task.name.removeprefix(self.prefix)
            if own in unseen.targets and task.name == self.prefix + own:
                targets[task.name] = torch.from_numpy(unseen.targets[own])
                masks[task.name] = torch.from_numpy(unseen.masks[own])
            else:
                targets[task.name] = task.missing_targets(number)
                masks[task.name] = torch.zeros(number, dtype=torch.bool)
        inputs = torch.from_numpy(unseen.inputs)
        named = {self.prefix + name: own for name, own in unseen.classes.items()}
        return LabelledRows(inputs, targets, masks, named, unseen.origins, unseen.notes)


def read_support(
    path: Path,
    experiment: Experiment,
    algorithm: Algorithm,
    query: Path | None = None,
    task: str | None = None,
) -> AdaptationExamples:
    """Rows with a label of any task are the support set; those without are the query set, or all
    rows of another file.

    For a run on the user's own files both are in the form of these; `task` is the only task that
    they have labels of. Raises UserError naming the file, the column and the row for what does not
    fit the run's tasks and inputs.
    """
    own_format = format_of(experiment.data, path, task)

    def read(file: Path, class_names: ClassNames) -> LabelledRows:
        if own_format is None:
            return read_rows(file, experiment, algorithm.tasks)
        return own_format.read(file, algorithm.tasks, class_names)

    rows = read(path, {})
    _check_labels(path, rows, experiment, algorithm)
    # Rows of a table may well be alike: few columns of few values say little else.
    if own_format is None or own_format.files.is_image:
        check_not_repeated(path, rows.inputs, rows.is_labelled)
    support = rows.at(rows.is_labelled)
    if query is None:
        query_batch = rows.at(~rows.is_labelled)
        origins = rows.origins.at((~rows.is_labelled).numpy())
        notes = list(rows.notes)
    else:
        others = read(query, rows.class_names)
        query_batch = others.at(torch.ones(len(others.inputs), dtype=torch.bool))
        origins = others.origins
        notes = list(dict.fromkeys((*rows.notes, *others.notes)))
    episode = Episode(support, query_batch)
    return AdaptationExamples(str(path), path.stem, episode, rows.class_names, origins, notes)


def _check_labels(
    path: Path, rows: LabelledRows, experiment: Experiment, algorithm: Algorithm
) -> None:
    """Raises UserError where there is nothing to adapt to."""
    missing = [name for name, mask in rows.masks.items() if not mask.any()]
    if len(missing) == len(rows.masks):
        raise UserError(f"{path}: expected rows with labels to adapt to, got none in {missing}.")
    if missing and not algorithm.learner.supports_zero_shot:
        raise UserError(
            f"{path}: column `{missing[0]}`: expected labels, of which {experiment.learner.name} "
            "makes its predictions, got none."
        )


def format_of(data: Source, path: Path, task: str | None) -> FilesFormat | None:
    """The format of the run's files, with `task` alone where it is given; None where a run is on
    none of the user's files.

    Raises UserError where `--task` has to say which part of the data, or which task, the examples
    are of.
    """
    if task is not None and task not in data.task_names:
        raise UserError(
            f"--task: expected one of {', '.join(data.task_names)}, got '{task}'. Correct the name."
        )
    files = files_of(data)
    if files is not None:
        if task is not None:
            return FilesFormat(files.select_tasks((task,)))
        _check_different_columns(files, path)
        return FilesFormat(files)
    if isinstance(data, Several):
        return _format_of_part(data, path, task)
    if task is not None:
        raise UserError(
            "--task: expected a run on files of its user's, whose tasks have files of their own."
        )
    return None


def _format_of_part(data: Several, path: Path, task: str | None) -> FilesFormat | None:
    every = {name: files_of(part) for name, part in data.parts.items()}
    parts = {name: files for name, files in every.items() if files is not None}
    if task is not None:
        name, own = data.part_of(task)
        if name not in parts:
            raise UserError(
                f"--task: expected a task of one of {', '.join(parts)}, got '{task}'. Correct the "
                "name."
            )
        return FilesFormat(parts[name].select_tasks((own,)), f"{name}_")
    if not parts:
        return None
    if len(parts) > 1:
        raise UserError(
            f"{path}: expected --task to say in the form of which of the parts "
            f"{', '.join(parts)} it is, got none. Add --task with one of "
            f"{', '.join(data.task_names)}."
        )
    ((name, part),) = parts.items()
    return FilesFormat(part, f"{name}_")


def _check_different_columns(data: Files, path: Path) -> None:
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


def draw_episode(experiment: Experiment, number: int) -> AdaptationExamples:
    """A held-out test episode of the source, with the names of its query rows where these are of
    the user's files.
    """
    data = experiment.data
    arrays = data.load()
    stacks, domains = build_episodes(
        data, arrays, seed=experiment.seed, split="test", step=0, indices=[number]
    )
    episode = tree_map(lambda leaf: leaf[0], stacks[0])
    origins = RowOrigins(np.arange(count_examples(episode.query)))
    class_names: ClassNames = {}
    files = files_of(data)
    if files is not None:
        draws = generators(experiment.seed, "test", 0, [number])
        rows, names = query_rows(files, arrays, "test", draws)
        origins = RowOrigins(rows)
        if isinstance(data, Files):
            origins = held_out(data, rows) or RowOrigins(np.arange(len(rows)))
        if names:
            class_names = dict.fromkeys(data.task_names, names)
    return AdaptationExamples(domains[0], f"episode-{number}", episode, class_names, origins)


def count_examples(batch: Batch) -> int:
    """How many examples a batch has; of tasks with inputs of their own, the most that one has."""
    if isinstance(batch.inputs, Tensor):
        return len(batch.inputs)
    return max(len(inputs) for inputs in batch.inputs.values())
