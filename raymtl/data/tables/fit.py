"""What is in the user's files: roles, classes, statistics, splits; found once, before anything
starts.
"""

from collections.abc import Collection, Mapping
from typing import NamedTuple

import numpy as np

from raymtl.data.tables.boxes import fit_boxes
from raymtl.data.tables.class_weights import check_class_loss
from raymtl.data.tables.column_numbers import encode_column, fit_columns, text_notes
from raymtl.data.tables.columns import is_text, texts, usual_length
from raymtl.data.tables.dataset import Forms, TableDataset
from raymtl.data.tables.dense_labels import fit_maps
from raymtl.data.tables.findings import copy_notes, label_notes
from raymtl.data.tables.fit_split import (
    Sample,
    SplitSample,
    Splitting,
    describe_split,
    split_sample,
)
from raymtl.data.tables.fit_stream import (
    blocks_in_memory,
    check_streamable,
    is_too_large,
    sample_blocks,
    sample_note,
)
from raymtl.data.tables.fitted_column import FittedColumn, Role
from raymtl.data.tables.label_files import BoxLabels
from raymtl.data.tables.labels import check_labels, fit_task, look_at_labels
from raymtl.data.tables.look import Readings
from raymtl.data.tables.pictures import channels_of
from raymtl.data.tables.readings import find_readings, given_input
from raymtl.data.tables.roles import (
    choose_inputs,
    left_out_notes,
    split_column_of,
    without_constants,
)
from raymtl.data.tables.schema import Fitted, FittedTask, Shades
from raymtl.data.tables.settings import FilesConfig, height_and_width
from raymtl.data.tables.shades import Unread, fit_shades
from raymtl.data.tables.statistics import TrainRows, sum_inputs, sum_labels
from raymtl.data.tables.text_columns import long_text_notes, text_column
from raymtl.data.tables.wide import complete
from raymtl.encoders.texts.settings import TextInput
from raymtl.storage.notes import Note
from raymtl.types import UserError

LOOKED_AT = 64  # pictures, for whether they are grey


class _Readings(NamedTuple):
    """The rows that were read, and in which forms their texts were read."""

    sample: Sample
    readings: Readings


def fit(source: FilesConfig) -> Fitted:
    """What was found in the files; of a stream, in a sample of its blocks. Raises UserError for
    what cannot be learned from.
    """
    dataset = TableDataset(source)
    streamed = is_too_large(source, dataset)
    sample, readings = _read_sample(source, dataset, streamed)
    candidates = choose_inputs(source, dataset, sample.rows, sample.locate_row, readings.oddities)
    split_column = split_column_of(source, dataset, sample.rows)
    hashed = tuple(candidates.roles)
    split = split_sample(source, dataset, sample, Splitting(hashed, split_column, streamed))
    chosen = without_constants(candidates, sample.rows, split.train, sample.locate_row)
    tasks, task_notes = _tasks(source, dataset, split, set(chosen.roles.values()))
    columns, column_notes = _fit_columns(source, dataset, split, chosen.roles)
    shape = _shape(source, dataset, columns)
    shades, shade_notes = _shades(source, dataset, split, columns[0])
    sampled = None
    if streamed:
        sampled = sample_note(source, dataset)
    else:
        _check_inputs(source, columns, sample)
    notes = (*readings.notes, *chosen.notes, *left_out_notes(chosen.left_out), *task_notes)
    notes = (*notes, *column_notes, *long_text_notes(columns, sample.rows.table))
    notes = (*notes, *_copies(source, split, chosen.roles), *_ignored_notes(tasks))
    if sampled is not None:
        notes = (*notes, sampled)
    return Fitted(
        settings=source.digest(),
        path=source.path,
        format=dataset.format,
        columns=tuple(columns),
        left_out=chosen.left_out,
        forms=readings.forms,
        hashed=hashed if len(hashed) > len(chosen.roles) else (),
        tasks=tasks,
        notes=(*notes, *dataset.skipped_notes(), *shade_notes),
        split_by=describe_split(source, split_column, dataset),
        split_column=split_column,
        given_splits=split.names_given_by(split_column),
        input_shape=shape,
        shades=shades,
        rows=dataset.num_rows,
        pool=blocks_in_memory(source, dataset, shape) if streamed else None,
    )


def _read_sample(source: FilesConfig, dataset: TableDataset, streamed: bool) -> _Readings:
    """The rows of all blocks, of a stream of some, in the forms that are found for their texts."""
    if streamed:
        check_streamable(source)
        numbers = sample_blocks(source, dataset)
    else:
        numbers = list(range(len(dataset.blocks)))
    raw, locate_row = dataset.together(numbers, raw=True)
    readings = find_readings(source, dataset, raw, locate_row)
    dataset.forms = Forms(readings.forms, readings.label_forms)
    rows = dataset.formed(raw, locate_row)
    return _Readings(Sample(numbers, rows, locate_row), readings)


def _fit_columns(
    source: FilesConfig, dataset: TableDataset, split: SplitSample, roles: Mapping[str, Role]
) -> tuple[list[FittedColumn], list[Note]]:
    """What has to be known to encode the inputs, of the rows for training, and notes on it."""
    rows = TrainRows(split.sample.rows.table, split.train, split.sample.locate_row)
    columns = []
    for name, role in roles.items():
        given = given_input(source, dataset, name)
        if isinstance(given, TextInput):
            columns.append(text_column(given, name, rows.table[name]))
        else:
            columns.append(_of_role(source, name, role, rows))
    sums = sum_inputs(columns, rows)
    fitted = fit_columns(columns, sums, source, rows.locate(0))
    return fitted, text_notes(fitted, sums)


def _of_role(source: FilesConfig, name: str, role: Role, rows: TrainRows) -> FittedColumn:
    """A column before anything is summed up."""
    if role == "vector":
        size = usual_length(rows.column(name)) or 1
        return FittedColumn(column=name, role=role, size=size)
    if role == "text":
        return FittedColumn(column=name, role=role, places=source.text_size)
    return FittedColumn(column=name, role=role)


def _copies(source: FilesConfig, split: SplitSample, roles: Mapping[str, Role]) -> list[Note]:
    """On rows of val and test that training has too, in their inputs and labels."""
    if "picture" in roles.values() or source.episodes == "classes":
        return []
    rows = split.sample.rows
    every = dict(zip(rows.table.column_names, rows.table.columns, strict=True))
    columns = {name: every[name] for name in roles}
    for name, labels in rows.labels.items():
        columns |= {f"{name} {column}": values for column, values in labels.items()}
    return copy_notes(columns, split.splits, split.sample.locate_row)


def _ignored_notes(tasks: Mapping[str, FittedTask]) -> tuple[Note, ...]:
    """The numbers in maps that say nothing."""
    return tuple(
        Note(
            place=f"task '{name}'",
            text=f"{', '.join(map(str, fitted.ignored))} in a map says nothing",
            key=f"data.tasks.{name}.ignore",
        )
        for name, fitted in tasks.items()
        if fitted.ignored
    )


def _tasks(
    source: FilesConfig, dataset: TableDataset, split: SplitSample, roles: Collection[str]
) -> tuple[dict[str, FittedTask], list[Note]]:
    """What the labels of each task are, and the notes on them. Raises UserError for labels of no
    kind.
    """
    tasks: dict[str, FittedTask] = {}
    notes: list[Note] = []
    for name, task in source.tasks.items():
        column = next(iter(split.sample.rows.labels[name].values()))
        labels = dataset.labels[name]
        if isinstance(labels, BoxLabels):
            _check_pictures(name, "boxes", roles)
            tasks[name] = fit_boxes(name, task, labels.boxes, column, split.train)
        elif labels.are_maps(column):
            _check_pictures(name, "maps", roles)
            maps = dataset.unread_maps(name, split.sample.numbers, column).maps
            tasks[name] = fit_maps(name, task, maps, split.train)
        else:
            tasks[name], of_task = _task_in_columns(source, dataset, name, split)
            notes += of_task
    _check_kind(source, tasks)
    return tasks, notes


def _check_pictures(name: str, what: str, roles: Collection[str]) -> None:
    """Raises UserError where the inputs are no pictures, which labels of this sort need."""
    if "picture" not in roles:
        raise UserError(
            f"data.tasks.{name}: expected inputs that are pictures, which the {what} are "
            f"about, got {', '.join(sorted(roles))}. Correct data.inputs, or leave the task "
            "away."
        )


def _task_in_columns(
    source: FilesConfig, dataset: TableDataset, name: str, split: SplitSample
) -> tuple[FittedTask, list[Note]]:
    """What the labels in columns of a table are, and the notes on them."""
    columns, locate_row = split.sample.rows.labels[name], split.sample.locate_row
    few_shot = source.episodes == "classes"
    looked_at = look_at_labels(name, source.tasks[name], columns, locate_row, few_shot=few_shot)
    sums = sum_labels(looked_at, columns, split.train, locate_row)
    fitted = fit_task(name, looked_at, sums, list(columns), int(split.train.sum()))
    fitted = fitted.model_copy(update={"forms": dataset.forms.labels.get(name, {})})
    target, mask = check_labels(name, fitted, columns, split.train, locate_row)
    if few_shot:
        return fitted, []
    return fitted, label_notes(name, fitted, target, mask, split.splits)


def _check_kind(source: FilesConfig, tasks: Mapping[str, FittedTask]) -> None:
    """Raises UserError where episodes are of classes and the task has none, and for keys that need
    classes.
    """
    for name, task in tasks.items():
        check_class_loss(name, task.asked, task.task_kind, few_shot=source.episodes == "classes")
    name, task = next(iter(tasks.items()))
    if source.episodes == "classes" and not task.task_kind.has_class_targets:
        raise UserError(
            "data.episodes: expected a task with classes for classes, got one of kind "
            f"{task.kind}. Set data.tasks.{name}.kind: classification."
        )


def _shape(
    source: FilesConfig, dataset: TableDataset, columns: list[FittedColumn]
) -> tuple[int, ...]:
    if columns[0].role != "picture":
        return (sum(column.size for column in columns),)
    height, width = height_and_width(source.size)
    return (source.channels or _channels(dataset, columns[0].column), height, width)


def _channels(dataset: TableDataset, column: str) -> int:
    """By some pictures, evenly spaced through the blocks."""
    contents = []
    each = max(1, LOOKED_AT // len(dataset.blocks))
    for number in np.unique(
        np.linspace(0, len(dataset.blocks) - 1, LOOKED_AT).astype(int)
    ).tolist():
        reads = dataset.contents(number, dataset.read(number).table[column])
        for row in np.unique(np.linspace(0, len(reads) - 1, each).astype(int)).tolist():
            try:
                contents.append(reads[row]())
            except OSError:
                continue  # told when all are read
    return channels_of(contents)


def _shades(
    source: FilesConfig, dataset: TableDataset, split: SplitSample, column: FittedColumn
) -> tuple[Shades | None, tuple[Note, ...]]:
    """What is black and white in the pictures for training; None where inputs are no pictures, or
    of 8 bits.
    """
    if column.role != "picture":
        return None, ()
    pictures: list[Unread] = []
    start = 0
    for number in split.sample.numbers:
        size = dataset.blocks[number][1].rows or 0
        values = split.sample.rows.table[column.column].slice(start, size)
        if is_text(values.type):
            names = texts(values).to_pylist()
        else:
            names = [dataset.locate_row(number, row) for row in range(size)]
        reads = dataset.contents(number, values)
        for row in np.flatnonzero(split.train[start : start + size]).tolist():
            pictures.append(Unread(str(names[row]), reads[row]))
        start += size
    return fit_shades(pictures, source.value_range)


def _check_inputs(source: FilesConfig, columns: list[FittedColumn], sample: Sample) -> None:
    """Raises UserError for inputs that are no numbers, before anything has started."""
    table = sample.rows.table
    sure = complete(table, [column.column for column in columns])
    impute = source.missing_inputs == "mean"
    for column in columns:
        if column.role not in ("number", "vector") or column.column in sure:
            continue
        out = np.empty((len(table), column.size), np.float32)
        encode_column(column, table[column.column], out, sample.locate_row, impute=impute)
