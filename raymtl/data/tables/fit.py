"""What is in the user's files: roles, classes, statistics, splits; found once, before anything
starts.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from raymtl.data.tables.boxes import fit_boxes
from raymtl.data.tables.columns import LocateRow, encode_column, fit_column, is_text, texts
from raymtl.data.tables.dataset import TableDataset, TableRows
from raymtl.data.tables.dense_labels import bytes_a_row, fit_maps
from raymtl.data.tables.encode import assign_splits, check_leak, given_splits, group_keys_of
from raymtl.data.tables.findings import copy_notes, label_notes
from raymtl.data.tables.labels import encode_task, fit_task
from raymtl.data.tables.pictures import channels_of
from raymtl.data.tables.readings import find_readings
from raymtl.data.tables.roles import (
    choose_inputs,
    left_out_notes,
    split_column_of,
    without_constants,
)
from raymtl.data.tables.schema import Fitted, FittedColumn, FittedTask, Role, Shades
from raymtl.data.tables.settings import FilesConfig, height_and_width
from raymtl.data.tables.shades import Unread, fit_shades
from raymtl.data.tables.splits import UNKNOWN
from raymtl.data.tables.wide import complete, fit_columns
from raymtl.notes import Note
from raymtl.types import UserError

LOOKED_AT = 64  # pictures, for whether they are grey
MOST_IN_POOL = 16  # blocks of a stream in memory at a time


class Looked(NamedTuple):
    """The rows that findings are made of, and what they are."""

    rows: TableRows
    locate_row: LocateRow
    splits: np.ndarray
    """[N]"""
    train: np.ndarray
    """[N] bool"""


def fit(source: FilesConfig) -> Fitted:
    """What was found. Raises UserError for what cannot be learned from."""
    dataset = TableDataset(source)
    streamed = _too_large(source, dataset)
    if streamed:
        numbers = _sample(source, dataset)
    else:
        numbers = list(range(len(dataset.blocks)))
    dataset.forms = None  # to see cells as they are written
    raw, locate_row = dataset.together(numbers)
    readings = find_readings(source, dataset, raw, locate_row)
    dataset.forms = readings.forms
    dataset.label_forms |= readings.label_forms
    rows = dataset.formed(raw, locate_row)
    del raw
    chosen = choose_inputs(source, dataset, rows, locate_row, readings.oddities)
    split_column = split_column_of(source, dataset, rows)
    splits = _sides(
        source, dataset, numbers, rows, list(chosen.roles), split_column, locate_row, streamed
    )
    train = splits == 0
    if not train.any():
        raise UserError(
            "data.split: expected rows for training, got none. Correct data.split or the paths."
        )
    looked = Looked(rows, locate_row, splits, train)
    hashed = tuple(chosen.roles)
    chosen = without_constants(chosen, rows, train, locate_row)
    tasks, task_notes = _tasks(source, dataset, numbers, looked, set(chosen.roles.values()))
    columns = _fit_columns(source, looked, chosen.roles)
    shape = _shape(source, dataset, columns)
    shades, shade_notes = _shades(source, dataset, numbers, rows, columns[0], train)
    if not streamed:
        _check_inputs(source, columns, rows, locate_row)
    notes = (
        *readings.notes,
        *chosen.notes,
        *left_out_notes(chosen.left_out),
        *task_notes,
        *_copies(source, looked, chosen.roles),
    )
    return Fitted(
        settings=source.digest(),
        path=source.path,
        format=dataset.format,
        columns=tuple(columns),
        left_out=chosen.left_out,
        forms=readings.forms,
        hashed=hashed if len(hashed) > len(chosen.roles) else (),
        tasks=tasks,
        notes=(*notes, *_ignored_notes(tasks), *dataset.skipped_notes(), *shade_notes),
        split_by=_split_words(source, split_column, dataset),
        split_column=split_column,
        input_shape=shape,
        shades=shades,
        rows=dataset.num_rows,
        pool=_pool(source, dataset, shape) if streamed else None,
    )


def _fit_columns(
    source: FilesConfig, looked: Looked, roles: Mapping[str, Role]
) -> list[FittedColumn]:
    """What has to be known to encode the inputs, of the rows for training."""
    found = np.flatnonzero(looked.train)
    numbers = [name for name, role in roles.items() if role == "number"]
    done = fit_columns(looked.rows.table, numbers, looked.train)
    return [
        done.get(name)
        or fit_column(
            looked.rows.table[name].filter(pa.array(looked.train)),
            name,
            role,
            lambda row: looked.locate_row(int(found[row])),
            max_categories=source.max_categories,
            text_size=source.text_size,
        )
        for name, role in roles.items()
    ]


def _copies(source: FilesConfig, looked: Looked, roles: Mapping[str, Role]) -> list[Note]:
    """On rows of val and test that training has too, in their inputs and labels."""
    if "picture" in roles.values() or source.episodes == "classes":
        return []
    every = dict(zip(looked.rows.table.column_names, looked.rows.table.columns, strict=True))
    columns = {name: every[name] for name in roles}
    for name, labels in looked.rows.labels.items():
        columns |= {f"{name} {column}": values for column, values in labels.items()}
    return copy_notes(columns, looked.splits, looked.locate_row)


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
    source: FilesConfig,
    dataset: TableDataset,
    numbers: Sequence[int],
    looked: Looked,
    roles: Collection[str],
) -> tuple[dict[str, FittedTask], list[Note]]:
    """What the labels of each task are, and the notes on them. Raises UserError for labels of no
    kind.
    """
    tasks: dict[str, FittedTask] = {}
    notes: list[Note] = []
    for name, task in source.tasks.items():
        column = next(iter(looked.rows.labels[name].values()))
        if name in dataset.boxes:
            about = "boxes"
        elif dataset.holds_maps(name, column):
            about = "maps"
        else:
            about = ""
        if about and "picture" not in roles:
            raise UserError(
                f"data.tasks.{name}: expected inputs that are pictures, which the {about} are "
                f"about, got {', '.join(sorted(roles))}. Correct data.inputs, or leave the task "
                "away."
            )
        if name in dataset.boxes:
            tasks[name] = fit_boxes(name, task, dataset.boxes[name], column, looked.train)
        elif about:
            cells, _ = dataset.unread_maps(name, numbers, column)
            tasks[name] = fit_maps(name, task, cells, looked.train)
        else:
            own = looked.rows.labels[name]
            few_shot = source.episodes == "classes"
            fitted = fit_task(name, task, own, looked.train, looked.locate_row, few_shot=few_shot)
            tasks[name] = fitted.model_copy(update={"forms": dataset.label_forms.get(name, {})})
            target, mask = encode_task(name, tasks[name], own, looked.locate_row)
            if source.episodes != "classes":
                notes += label_notes(name, tasks[name], target, mask, looked.splits)
    _check_kind(source, tasks)
    return tasks, notes


def _check_kind(source: FilesConfig, tasks: Mapping[str, FittedTask]) -> None:
    """Raises UserError where episodes are of classes and the task has none."""
    name, task = next(iter(tasks.items()))
    if source.episodes == "classes" and not task.task_kind.has_class_targets:
        raise UserError(
            "data.episodes: expected a task with classes for classes, got one of kind "
            f"{task.kind}. Set data.tasks.{name}.kind: classification."
        )


def _too_large(source: FilesConfig, dataset: TableDataset) -> bool:
    if dataset.format == "pictures":
        height, width = height_and_width(source.size)
        row = (source.channels or 3) * height * width + _bytes_of_maps(source, dataset)
        return dataset.megabytes(row) > source.in_memory_mb
    return dataset.megabytes() > source.in_memory_mb


def _bytes_of_maps(source: FilesConfig, dataset: TableDataset) -> int:
    """What the labels of a row take that are maps."""
    size = height_and_width(source.size)
    labels = dataset.read(0).labels
    return sum(
        bytes_a_row(task.task_kind, size)
        for name, task in source.tasks.items()
        if dataset.holds_maps(name, next(iter(labels[name].values())))
    )


def _sample(source: FilesConfig, dataset: TableDataset) -> list[int]:
    """Blocks by chance, of `fit_rows` rows together. Raises UserError for what cannot be
    streamed.
    """
    if source.episodes != "rows":
        raise UserError(
            "data.episodes: expected rows where files are larger than data.in_memory_mb: "
            f"{source.in_memory_mb:g}, got {source.episodes}, which needs all rows in memory. "
            "Raise data.in_memory_mb."
        )
    order = np.random.default_rng(source.split.seed).permutation(len(dataset.blocks)).tolist()
    chosen, rows = [], 0
    for number in order:
        chosen.append(number)
        rows += dataset.blocks[number][1].rows or 0
        if rows >= source.fit_rows:
            break
    return sorted(chosen)


def _pool(source: FilesConfig, dataset: TableDataset, shape: tuple[int, ...]) -> int:
    """How many blocks fit into a quarter of the memory. Raises UserError where one does not."""
    row = (
        int(np.prod(shape)) * (1 if len(shape) > 1 else 4)
        + 16 * len(source.tasks)
        + _bytes_of_maps(source, dataset)
    )
    largest = max(dataset.blocks, key=lambda entry: entry[1].rows or 0)[1]
    block_mb = (largest.rows or 0) * row / 1e6
    if block_mb > source.in_memory_mb / 2:
        raise UserError(
            f"{largest.file}: expected blocks that fit twice into data.in_memory_mb: "
            f"{source.in_memory_mb:g}, got one of {largest.rows} rows, {block_mb:.0f} MB. Write "
            "Parquet with smaller row groups, or raise it."
        )
    return int(
        min(
            MOST_IN_POOL,
            len(dataset.blocks),
            max(1, source.in_memory_mb / 4 // max(block_mb, 1e-9)),
        )
    )


def _sides(
    source: FilesConfig,
    dataset: TableDataset,
    numbers: list[int],
    rows: TableRows,
    inputs: list[str],
    column: str | None,
    locate_row: Callable[[int], str],
    streamed: bool,
) -> np.ndarray:
    given, hashed = given_splits(source, rows, None, inputs, column, locate_row)
    if column is None:
        counts = [dataset.blocks[number][1].rows or 0 for number in numbers]
        of_block = [
            UNKNOWN if (split := dataset.split_of(number)) is None else split for number in numbers
        ]
        given = np.repeat(np.array(of_block, np.int8), counts)
    splits = assign_splits(source, given, hashed, each_by_itself=streamed)
    if source.episodes == "classes" and source.group is None:
        what = "the class"
    else:
        what = f"{source.group}"
    check_leak(group_keys_of(source, rows, locate_row), splits, what, locate_row)
    return splits


def _split_words(source: FilesConfig, column: str | None, dataset: TableDataset) -> str:
    if column:
        return f"column '{column}'"
    if any(dataset.split_of(number) is not None for number in range(len(dataset.blocks))):
        return "paths"
    shares = ":".join(f"{share:g}" for share in source.split.fractions)
    if source.group:
        return f"{shares} of the values of '{source.group}'"
    if source.episodes == "classes":
        return f"{shares} of the classes"
    return f"{shares} by the hash of {repr(source.split.key) if source.split.key else 'the inputs'}"


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
    source: FilesConfig,
    dataset: TableDataset,
    numbers: Sequence[int],
    rows: TableRows,
    column: FittedColumn,
    train: np.ndarray,
) -> tuple[Shades | None, tuple[Note, ...]]:
    """What is black and white in the pictures for training; None where inputs are no pictures, or
    of 8 bits.
    """
    if column.role != "picture":
        return None, ()
    pictures: list[Unread] = []
    start = 0
    for number in numbers:
        size = dataset.blocks[number][1].rows or 0
        own = rows.table[column.column].slice(start, size)
        if is_text(own.type):
            named = texts(own).to_pylist()
        else:
            named = [dataset.locate_row(number, row) for row in range(size)]
        reads = dataset.contents(number, own)
        pictures += [
            Unread(str(named[row]), reads[row])
            for row in np.flatnonzero(train[start : start + size]).tolist()
        ]
        start += size
    return fit_shades(pictures, source.value_range)


def _check_inputs(
    source: FilesConfig,
    columns: list[FittedColumn],
    rows: TableRows,
    locate_row: Callable[[int], str],
) -> None:
    """Raises UserError for inputs that are no numbers, before anything has started."""
    sure = complete(rows.table, [column.column for column in columns])
    for column in columns:
        if column.role in ("number", "vector") and column.column not in sure:
            out = np.empty((len(rows.table), column.size), np.float32)
            encode_column(
                column,
                rows.table[column.column],
                out,
                locate_row,
                impute=source.missing_inputs == "mean",
            )
