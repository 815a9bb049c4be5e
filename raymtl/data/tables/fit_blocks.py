"""Classes and statistics of all rows of files that are larger than memory, block by block.

A driver adds up the blocks: `in_this_process`, or Ray Data on all machines. Both call `sum_block`,
and its sums are exact, so what is found is equal to the bit.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from operator import add

import numpy as np

from raymtl.data.tables.column_names import label_columns
from raymtl.data.tables.column_numbers import fit_columns, text_notes
from raymtl.data.tables.dataset import TableDataset
from raymtl.data.tables.findings import listed
from raymtl.data.tables.fit_stream import blocks_in_memory, sample_note
from raymtl.data.tables.label_files import BoxLabels
from raymtl.data.tables.labels import fit_task
from raymtl.data.tables.schema import Fitted, FittedTask
from raymtl.data.tables.source import Files
from raymtl.data.tables.split_rows import (
    block_splits,
    given_splits,
    group_keys_of,
    row_hashes,
)
from raymtl.data.tables.statistics import (
    LabelSums,
    Statistics,
    TrainRows,
    sum_inputs,
    sum_labels,
)
from raymtl.storage.notes import Note
from raymtl.tasks.classification import CLASSIFICATION

SumBlocks = Callable[[Files, Sequence[int]], Iterator[Statistics]]
"""Gives sums that together are those of the blocks with these numbers, in any order."""


def in_this_process(source: Files, numbers: Sequence[int]) -> Iterator[Statistics]:
    """Adds up one block after another."""
    dataset = TableDataset(source)
    for number in numbers:
        yield sum_block(source, dataset, number)


def sum_block(source: Files, dataset: TableDataset, number: int) -> Statistics:
    """The statistics of a block of rows, by the roles of columns and the kinds of tasks that were
    found. They depend on these and on the rows alone.

    Raises UserError, naming file, row and column, for what cannot be a number or a label.
    """

    def locate_row(row: int) -> str:
        return dataset.locate_row(number, row)

    found = source.found
    rows = dataset.read(number)
    given = given_splits(rows, dataset.split_of(number), found.split_column, locate_row)
    group_keys = group_keys_of(source, rows, locate_row)
    hashed_columns = found.hashed or [column.column for column in found.columns]
    hashed = row_hashes(source, rows, group_keys, hashed_columns)
    train = block_splits(source, dataset, given, hashed) == 0
    inputs = sum_inputs(found.columns, TrainRows(rows.table, train, locate_row))
    labels = {
        name: sum_labels(found.tasks[name], rows.labels[name], train, locate_row)
        for name in counted_tasks(source, dataset)
    }
    return Statistics(int(np.count_nonzero(train)), inputs, labels)


def counted_tasks(source: Files, dataset: TableDataset) -> list[str]:
    """The tasks whose labels are counted: those in columns. What was found in boxes and maps stays
    as it is.
    """
    return [
        name
        for name in source.tasks
        if not isinstance(dataset.labels[name], BoxLabels)
        and not source.found.tasks[name].task_kind.is_map
    ]


def fit_all_rows(source: Files, sum_blocks: SumBlocks = in_this_process) -> Files:
    """The same files with classes and statistics of all rows, where those of a stream are of a
    sample of its blocks. Raises UserError for rows that cannot be encoded.
    """
    found = source.found
    dataset = TableDataset(source)
    sampled = sample_note(source, dataset)
    if found.pool is None or sampled is None:
        return source
    sums = reduce(add, sum_blocks(source, range(len(dataset.blocks))))
    columns = fit_columns(found.columns, sums.inputs, source, dataset.parts[0].file_set.shown)
    tasks = dict(found.tasks)
    notes = [note for note in found.notes if note != sampled and not _is_outdated(note)]
    notes += text_notes(columns, sums.inputs)
    for name in counted_tasks(source, dataset):
        names = label_columns(name, source.tasks[name])
        looked_at = _of_more_classes(tasks[name], sums.labels[name])
        tasks[name] = fit_task(name, looked_at, sums.labels[name], names, sums.rows)
        notes += _unseen_notes(name, tasks[name], sums)
    text = f"classes, means and standard deviations are of all {found.rows:,} rows"
    notes.append(Note(place="files", text=text, key="data.tasks.*.classes"))
    fitted = found.model_copy(
        update={"columns": tuple(columns), "tasks": tasks, "notes": tuple(notes)}
    )
    return source.model_copy(update={"fitted": _resized(source, dataset, fitted)})


def _of_more_classes(fitted: FittedTask, sums: LabelSums) -> FittedTask:
    """A classification where two classes were in the sample and other rows have more."""
    most = fitted.task_kind.max_classes
    if not fitted.inferred or fitted.asked.classes or most is None or len(sums.yes) <= most:
        return fitted
    return fitted.model_copy(update={"kind": CLASSIFICATION.name})


def _is_outdated(note: Note) -> bool:
    """Whether a note is on classes that no row for training in the sample has, or on its texts."""
    return note.key == "data.text_terms" or (
        note.key == "data.split" and note.place.startswith("task ")
    )


def _unseen_notes(name: str, fitted: FittedTask, sums: Statistics) -> list[Note]:
    unseen = [label for label in fitted.classes if not sums.labels[name].yes.get(label)]
    if not unseen:
        return []
    text = f"no row for training has {listed(unseen)}"
    return [Note(place=f"task '{name}'", text=text, key="data.split")]


def _resized(source: Files, dataset: TableDataset, fitted: Fitted) -> Fitted:
    """The same for inputs of as many numbers as their columns have now."""
    if fitted.columns[0].role == "picture":
        return fitted
    shape = (sum(column.size for column in fitted.columns),)
    pool = blocks_in_memory(source, dataset, shape)
    return fitted.model_copy(update={"input_shape": shape, "pool": pool})
