"""Writes predictions.parquet: a model's predictions for rows, in a form for people (docs/adapt.md).

Numbers have the unit of the file. Classes have their names and a probability each. Masks and boxes
are in the pixels of the original picture.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from raymtl.data import Arrays, Files, Several, Source, Split, files_of
from raymtl.data.base import HeldOut
from raymtl.data.episodes import on_device
from raymtl.data.tables.row_origins import RowOrigins, held_out
from raymtl.evaluation.image_resize import ImageResize
from raymtl.evaluation.prediction import Prediction
from raymtl.evaluation.prediction_columns import COLUMNS, Columns
from raymtl.step.algorithm import Algorithm
from raymtl.storage import atomic
from raymtl.types import Params, Task, UserError

NUMBERS_AT_ONCE = 2**24  # of maps that are in memory
EXAMPLES_AT_ONCE = 256
"""Held-out rows that are predicted in one pass."""
RESERVED = ("row", "file")


def prediction_of(
    source: Source,
    task: Task,
    target: Tensor | None,
    mask: Tensor | None,
    before: Tensor | None,
    after: Tensor,
) -> Prediction:
    """The prediction with the source's names of the classes; `mask` [N] says which rows have a
    label, all by default.
    """
    names: tuple[str, ...] = ()
    if task.name in source.task_names:
        names = source.class_names(task.name)
    if target is None:
        is_labelled = np.zeros(len(after), bool)
    elif mask is None:
        is_labelled = np.ones(len(after), bool)
    else:
        is_labelled = mask.cpu().numpy()
    numbers = tuple(str(label) for label in range(task.num_classes))
    values = _values_of(source, task.name)
    return Prediction(
        task, names or numbers, bool(names), values, target, is_labelled, before, after
    )


def _values_of(source: Source, task: str) -> tuple[int, ...]:
    if isinstance(source, Several):
        part, name = source.part_of(task)
        return _values_of(source.parts[part], name)
    files = files_of(source)
    if files is not None and task in files.found.tasks:
        return files.found.tasks[task].values
    return ()


def image_resize_of(source: Source) -> ImageResize | None:
    """How the pictures of the user's files were resized; None for another source."""
    files = files_of(source)
    if files is not None and files.is_image:
        height, width = files.input_shape[-2:]
        return ImageResize((height, width), files.resize == "crop")
    return None


def write_held_out(
    path: Path, source: Source, algorithm: Algorithm, params: Params, arrays: Arrays, split: Split
) -> int:
    """Publishes the predictions for every row of a split by a model that does not adapt. Returns
    the number of rows.

    Raises UserError if the model adapts, or if the source generates its examples randomly.
    """
    sections: Sequence[HeldOut] = ()
    if not algorithm.uses_support:
        sections = source.every_example(arrays, split)
    if not sections:
        raise UserError(
            "--predictions: expected a model that does not adapt and a split of rows, got one that "
            "is scored on episodes. `raymtl adapt RUN --episode N` writes the predictions of one."
        )

    def tables(section: HeldOut) -> Iterator[pa.Table]:
        return _tables_of_section(section, source, algorithm, params)

    def write(aside: Path) -> None:
        if len(sections) == 1:
            _write(aside, tables(sections[0]))
            return
        pieces = [table for section in sections for table in tables(section)]
        _write(aside, iter([pa.concat_tables(pieces, promote_options="default")]))

    try:
        atomic.publish(path, write)
    except OSError as error:
        raise UserError(
            f"--predictions: {path} cannot be written ({error.strerror}). Choose another place."
        ) from None
    return sum(len(section.rows) for section in sections)


def _tables_of_section(
    section: HeldOut, source: Source, algorithm: Algorithm, params: Params
) -> Iterator[pa.Table]:
    """The predictions for a section of held-out rows, some rows at a time."""
    origins = RowOrigins(section.rows)
    if isinstance(source, Files):
        needs_shapes = any(task.is_dense for task in algorithm.tasks)
        origins = held_out(source, section.rows, shapes=needs_shapes) or origins
    for start in range(0, len(section.rows), EXAMPLES_AT_ONCE):
        rows = np.arange(start, min(start + EXAMPLES_AT_ONCE, len(section.rows)))
        batch = on_device(section.batch(section.rows[rows]), "cpu")
        with torch.no_grad():
            outputs = algorithm.predict(params, batch.inputs)
        predictions = []
        for task in algorithm.tasks:
            name = task.name
            if name in batch.targets:
                target, mask = batch.targets[name], batch.masks.get(name)
                predictions.append(prediction_of(source, task, target, mask, None, outputs[name]))
        yield from _tables(predictions, origins.at(rows), image_resize_of(source))


def write_predictions(
    path: Path,
    predictions: Sequence[Prediction],
    origins: RowOrigins,
    resize: ImageResize | None = None,
) -> None:
    """Publishes the predictions for these rows, in batches."""

    atomic.publish(path, lambda aside: _write(aside, _tables(predictions, origins, resize)))


def predictions_table(
    predictions: Sequence[Prediction], origins: RowOrigins, resize: ImageResize | None = None
) -> pa.Table:
    """The same as one table."""
    tables = list(_tables(predictions, origins, resize))
    return pa.concat_tables(tables, promote_options="default")


def _write(path: Path, tables: Iterator[pa.Table]) -> None:
    """Writes the tables one after the other; there is at least one."""
    first = next(tables)
    with pq.ParquetWriter(path, first.schema) as writer:
        writer.write_table(first)
        for table in tables:
            writer.write_table(table)


def _tables(
    predictions: Sequence[Prediction], origins: RowOrigins, resize: ImageResize | None
) -> Iterator[pa.Table]:
    number = len(origins.rows)
    largest = 1
    if origins.shapes is not None and number and any(each.task.is_dense for each in predictions):
        largest = int(origins.shapes.prod(1).max())
    step = max(1, NUMBERS_AT_ONCE // largest)
    for start in range(0, max(1, number), step):
        rows = slice(start, start + step)
        chunk = origins.at(np.arange(number)[rows])
        columns = _naming(chunk)
        for prediction in predictions:
            columns_of = COLUMNS[prediction.task.kind.label_form]
            of_task = columns_of(prediction.at(rows), chunk.shapes, resize)
            columns |= {name: _padded(values, len(chunk.rows)) for name, values in of_task.items()}
        yield pa.table(columns)


def _padded(values: pa.Array, number: int) -> pa.Array:
    """The values with nulls behind them, for a task that has fewer inputs than others."""
    return pa.concat_arrays([values, pa.nulls(number - len(values), values.type)])


def _naming(origins: RowOrigins) -> Columns:
    columns: Columns = {"row": pa.array(origins.rows, pa.int64())}
    if origins.files is not None:
        columns["file"] = pa.array(origins.files, pa.string())
    if origins.named is not None:
        name = origins.named
        if name in RESERVED:
            name = f"key {name}"
        columns[name] = pa.array(origins.names, pa.string())
    return columns
