"""Rows of the user's files as arrays, encoded block by block."""

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from raymtl.data.tables.boxes import encode_boxes
from raymtl.data.tables.column_numbers import encode_column
from raymtl.data.tables.dataset import TableDataset, TableRows
from raymtl.data.tables.dense_labels import MapTarget, encode_maps
from raymtl.data.tables.label_encoding import encode_task
from raymtl.data.tables.label_files import BoxLabels
from raymtl.data.tables.pictures import measured
from raymtl.data.tables.settings import FilesConfig
from raymtl.data.tables.split_rows import given_splits, group_keys_of, row_hashes
from raymtl.data.tables.wide import encode_columns


class Encoded(NamedTuple):
    """The rows of a block as numbers."""

    arrays: Mapping[str, np.ndarray]
    """`inputs`, and `target/T` and `mask/T` of each task, which is False where the picture could
    not be read.
    """
    given: np.ndarray
    """The split of each row that the files give, or UNKNOWN."""
    hashed: np.ndarray
    group_keys: pa.Array | None
    """The group or the class of each row, as text."""
    unreadable: Sequence[str]
    missing_maps: Sequence[str]
    """Maps that are named and are in no folder."""
    beyond: Sequence[str]
    """Pictures with values darker than black or lighter than white."""
    faded: Sequence[str]
    """Pictures whose colours are seen as greys."""


def encode(source: FilesConfig, dataset: TableDataset, number: int) -> Encoded:
    """The block of rows with this number. Raises UserError, naming file, row and column, for what
    cannot be a number or a label.
    """
    return encode_rows(source, dataset, number, dataset.read(number))


def encode_blocks(
    source: FilesConfig, dataset: TableDataset, numbers: Sequence[int]
) -> Iterator[Encoded]:
    """These blocks in their order; one is read while the one before it is encoded. Raises the
    same.
    """
    with ThreadPoolExecutor(max_workers=1) as reader:
        ahead = [reader.submit(dataset.read, number) for number in numbers[:1]]
        for place, number in enumerate(numbers):
            rows = ahead.pop().result()
            ahead = [reader.submit(dataset.read, after) for after in numbers[place + 1 : place + 2]]
            yield encode_rows(source, dataset, number, rows)


def encode_rows(
    source: FilesConfig, dataset: TableDataset, number: int, rows: TableRows
) -> Encoded:
    """The rows of a block, which were read already. The result depends on the findings of the
    source and on these rows alone, so any process on any machine computes the same numbers.
    """

    def locate_row(row: int) -> str:
        return dataset.locate_row(number, row)

    inputs = encode_inputs(source, dataset, number, rows)
    arrays = {"inputs": inputs.numbers}
    unreadable = list(inputs.unreadable)
    missing_maps: list[str] = []
    for name in source.tasks:
        labels = encode_labels(source, dataset, number, name, rows, inputs.shapes)
        arrays[f"target/{name}"] = labels.target
        arrays[f"mask/{name}"] = labels.mask & inputs.readable
        unreadable += labels.unreadable
        missing_maps += labels.missing_maps
    columns = source.found.hashed or [column.column for column in source.found.columns]
    split_column = source.found.split_column
    given = given_splits(rows, dataset.split_of(number), split_column, locate_row)
    group_keys = group_keys_of(source, rows, locate_row)
    return Encoded(
        arrays,
        given,
        row_hashes(source, rows, group_keys, columns),
        group_keys,
        unreadable,
        missing_maps,
        inputs.beyond,
        inputs.faded,
    )


class EncodedInputs(NamedTuple):
    """`numbers` [N, ...] and which rows could be read; `shapes` [N, 2] of their pictures, 0 where
    there is none.
    """

    numbers: np.ndarray
    readable: np.ndarray
    shapes: np.ndarray
    unreadable: Sequence[str]
    beyond: Sequence[str] = ()
    """Pictures with values darker than black or lighter than white."""
    faded: Sequence[str] = ()
    """Pictures whose colours are seen as greys."""


class EncodedLabels(NamedTuple):
    """`target` [N, ...] and `mask` [N] of a task; its maps that could not be read, and those that
    are not there.
    """

    target: np.ndarray
    mask: np.ndarray
    unreadable: Sequence[str] = ()
    missing_maps: Sequence[str] = ()


def encode_labels(
    source: FilesConfig,
    dataset: TableDataset,
    number: int,
    name: str,
    rows: TableRows,
    shapes: np.ndarray,
) -> EncodedLabels:
    """The labels of a task in a block, whose pictures had these shapes. Raises UserError for what
    cannot be one.
    """
    fitted = source.found.tasks[name]
    labels = dataset.labels[name]
    if isinstance(labels, BoxLabels):
        ((_, index),) = rows.labels[name].items()
        size = source.input_shape[-2:]
        encoded_boxes = encode_boxes(
            fitted, labels.boxes, index, shapes, (size[0], size[1]), source.resize
        )
        return EncodedLabels(encoded_boxes.target, encoded_boxes.mask, encoded_boxes.faults)
    if not fitted.task_kind.is_map:
        locate_row = partial(dataset.locate_row, number)
        return EncodedLabels(*encode_task(name, fitted, rows.labels[name], locate_row))
    ((_, values),) = rows.labels[name].items()
    cells, missing = dataset.unread_maps(name, [number], values)
    height, width = source.input_shape[-2:]
    target, mask, unreadable = encode_maps(
        name, fitted, labels.column, cells, shapes, MapTarget((height, width), source.resize)
    )
    return EncodedLabels(target, mask, unreadable, [f"{one} of task '{name}'" for one in missing])


def encode_inputs(
    source: FilesConfig, dataset: TableDataset, number: int, rows: TableRows
) -> EncodedInputs:
    """The inputs of a block. Raises UserError, naming file, row and column, for what cannot be a
    number.
    """
    fitted = source.found.columns
    size = len(rows.table)
    if fitted[0].role == "picture":
        return _pictures(source, dataset, number, rows.table[fitted[0].column])
    out = np.empty((size, *source.input_shape), np.float32)
    done = encode_columns(fitted, rows.table, out, impute=source.missing_inputs == "mean")
    start = 0
    for column in fitted:
        if column.column not in done:
            encode_column(
                column,
                rows.table[column.column],
                out[:, start : start + column.size],
                lambda row: dataset.locate_row(number, row),
                impute=source.missing_inputs == "mean",
            )
        start += column.size
    return EncodedInputs(out, np.ones(size, bool), np.zeros((size, 2), np.int64), [])


def _pictures(
    source: FilesConfig, dataset: TableDataset, number: int, column: pa.ChunkedArray
) -> EncodedInputs:
    channels, height, width = source.input_shape
    reads = dataset.contents(number, column)
    out = np.zeros((len(reads), channels, height, width), np.uint8)
    readable = np.ones(len(reads), bool)
    shapes = np.zeros((len(reads), 2), np.int64)

    beyond, faded = np.zeros((2, len(reads)), bool)

    def named(row: int) -> str:
        value = column[row].as_py()
        if isinstance(value, str):
            return value
        return dataset.locate_row(number, row)

    def fill(row: int) -> str | None:
        try:
            content = reads[row]()
            pixels = measured(
                content, (height, width), channels, source.resize, source.found.shades
            )
        except OSError as error:
            readable[row] = False
            return f"{named(row)} ({' '.join(str(error).split())[:120] or type(error).__name__})"
        out[row], shapes[row], beyond[row], faded[row] = pixels
        return None

    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as threads:
        unreadable = [fault for fault in threads.map(fill, range(len(reads))) if fault]
    names_beyond = [named(row) for row in np.flatnonzero(beyond).tolist()]
    names_faded = [named(row) for row in np.flatnonzero(faded).tolist()]
    return EncodedInputs(out, readable, shapes, unreadable, names_beyond, names_faded)
