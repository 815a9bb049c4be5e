"""Examples of a new task in a user's files (docs/transfer.md)."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from raymtl.adaptation.examples import FilesFormat, format_of
from raymtl.adaptation.plain_table import read_new_labels
from raymtl.adaptation.request import AdaptationRequest
from raymtl.adaptation.rows import NewLabels, check_not_repeated, scaled
from raymtl.adaptation.transfer import Examples
from raymtl.config import Experiment
from raymtl.data import Files, files_of
from raymtl.data.tables.row_origins import RowOrigins
from raymtl.storage.notes import Note
from raymtl.types import UserError

ReadLabels = Callable[[Path, str | None, NewLabels | None], NewLabels]
"""File, column and, where the file is that to be predicted, the examples -> its rows."""


class NewTaskExamples(NamedTuple):
    """The examples of a new task that have a label, and the rows that are to be predicted."""

    column: str
    """The column of the labels."""
    examples: Examples
    inputs: Tensor
    """[N, ...], of what is to be predicted."""
    targets: Tensor
    """[N] of these, nan where there is none."""
    origins: RowOrigins
    """Of these."""
    class_names: tuple[str, ...]
    """By their numbers; none where labels are numbers."""
    notes: Sequence[Note] = ()


def read_new_task(
    request: AdaptationRequest, experiment: Experiment, column: str | None, *, of_classes: bool
) -> NewTaskExamples:
    """Rows with a label, and those that are to be predicted: without one, or all of another file.

    `column` may be omitted where there is only one beside the inputs. Labels are any numbers, and
    for a run on the user's own files any classes. Raises UserError naming the file, the column and
    the row.
    """
    path = request.support
    assert path is not None
    own_format: FilesFormat | None
    files = files_of(experiment.data)
    if request.task is None and files is not None:
        own_format = FilesFormat(files)  # none of its tasks' labels are read
    else:
        own_format = format_of(experiment.data, path, request.task)
    if own_format is None:
        read = _plain_reader(experiment)
    else:
        read = _files_reader(own_format.files, of_classes)
    labels = read(path, column, None)
    known = ~labels.targets.isnan()
    _check(path, labels, known)
    if own_format is None:
        check_not_repeated(path, labels.inputs, known)
    examples = Examples(labels.inputs[known], labels.targets[known])
    if request.query is None:
        inputs, targets = labels.inputs[~known], labels.targets[~known]
        origins = labels.origins.at((~known).numpy())
        notes = labels.notes
    else:
        others = read(request.query, labels.column, labels)
        inputs, targets, origins = others.inputs, others.targets, others.origins
        notes = list(dict.fromkeys((*labels.notes, *others.notes)))
    return NewTaskExamples(
        labels.column, examples, inputs, targets, origins, labels.class_names, notes
    )


def _check(path: Path, labels: NewLabels, known: Tensor) -> None:
    """Raises UserError where no row has a label, or all have the same class."""
    where = f"{path}: column `{labels.column}`"
    if not known.any():
        raise UserError(f"{where}: expected rows with labels to learn from, got none.")
    if len(labels.class_names) == 1:
        raise UserError(
            f"{where}: expected labels of at least two classes, got '{labels.class_names[0]}' "
            "alone. Give examples of another class too."
        )


def _files_reader(data: Files, of_classes: bool) -> ReadLabels:
    from raymtl.data.tables.new_labels import read_new_labels

    def read(path: Path, column: str | None, examples: NewLabels | None) -> NewLabels:
        if examples is None or not of_classes:
            classes = None
        else:
            classes = examples.class_names
        rows = read_new_labels(
            data,
            str(path),
            column,
            of_classes=of_classes,
            classes=classes,
            optional=examples is not None,
        )
        inputs, targets = scaled(torch.from_numpy(rows.inputs)), torch.from_numpy(rows.targets)
        return NewLabels(rows.column, inputs, targets, rows.classes, rows.origins, rows.notes)

    return read


def _plain_reader(experiment: Experiment) -> ReadLabels:
    def read(path: Path, column: str | None, examples: NewLabels | None) -> NewLabels:
        return read_new_labels(path, experiment, column, optional=examples is not None)

    return read
