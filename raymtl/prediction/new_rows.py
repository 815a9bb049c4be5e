"""Files of rows to predict: opened once, read and predicted block by block."""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
from torch import Tensor

from raymtl.adaptation.examples import FilesFormat, format_of
from raymtl.adaptation.plain_table import read_rows
from raymtl.adaptation.rows import LabelledRows
from raymtl.data.tables.faults import Faults, check_readable
from raymtl.data.tables.new_rows import NewRows
from raymtl.evaluation.predictions import image_resize_of, prediction_of, predictions_table
from raymtl.prediction.trained import Trained, outputs_in_chunks
from raymtl.storage.notes import Note

PIECE_BYTES = 32 << 20
"""The size of the pieces in which large CSV files are read."""
LEAST_AT_ONCE = 256
NUMBERS_AT_ONCE = 1 << 17
"""Of inputs that pass the model together, unless that is fewer than LEAST_AT_ONCE of them."""


class Predicted(NamedTuple):
    """The predictions for a block, and what of its rows is not as it should be."""

    table: pa.Table
    faults: Faults


class _FilesOfRun(NamedTuple):
    """Files in the form of the run's own."""

    form: FilesFormat
    rows: NewRows


class RowsToPredict:
    """A file or a folder with rows to predict.

    A run on files reads those in the same form by blocks: a row group of Parquet, a piece of a
    large CSV file, some pictures. A run on another source reads a Parquet file with the column
    `input` as one block (docs/adapt.md).
    """

    def __init__(self, trained: Trained, path: str) -> None:
        """Opens the files. Raises UserError for a model that does not predict, and for files that
        are not there or lack a column.
        """
        trained.check_ready("predict", "Call adapt first.")
        self.path = path
        experiment = trained.experiment
        own = format_of(experiment.data, Path(path), None)
        self._files: _FilesOfRun | None = None
        self._plain: LabelledRows | None = None
        if own is None:
            self._plain = read_rows(
                Path(path), experiment, trained.algorithm.tasks, unlabelled=True
            )
        else:
            self._files = _FilesOfRun(own, own.open(path, trained.class_names, PIECE_BYTES))

    @property
    def has_blocks(self) -> bool:
        """Whether the rows are read by blocks, and are not in memory."""
        return self._files is not None

    def __len__(self) -> int:
        """The number of blocks."""
        if self._files is None:
            return 1
        return len(self._files.rows)

    def size(self, number: int) -> int:
        """The number of rows of a block."""
        if self._files is None:
            assert self._plain is not None
            return len(self._plain.inputs)
        return self._files.rows.size(number)

    @property
    def num_rows(self) -> int:
        """The number of all rows."""
        return sum(self.size(number) for number in range(len(self)))

    @property
    def megabytes(self) -> float:
        """The size of the files; 0 for rows that are in memory."""
        if self._files is None:
            return 0.0
        return self._files.rows.dataset.megabytes()

    def fingerprint(self) -> str:
        """What changes when the files do: the SHA-256 of their names, sizes and times."""
        if self._files is None:
            return ""
        digest = hashlib.sha256()
        for file_set in self._files.rows.dataset.file_sets():
            for info in file_set.fs.get_file_info(list(file_set.files)):
                digest.update(repr((info.path, info.size, info.mtime_ns)).encode())
        return digest.hexdigest()

    def notes(self) -> list[Note]:
        """On files that are passed over."""
        if self._files is None:
            return []
        return self._files.rows.dataset.skipped_notes()

    def read(self, trained: Trained, number: int) -> tuple[LabelledRows, Faults]:
        """The rows of a block. Raises UserError, naming file, row and column."""
        if self._files is None:
            assert self._plain is not None
            return self._plain, Faults()
        form, rows = self._files
        unseen = rows.read(number)
        return form.labelled(unseen, trained.algorithm.tasks), unseen.faults

    def read_all(self, trained: Trained) -> LabelledRows:
        """The rows of all blocks. Raises the same."""
        if self._files is None:
            return self.read(trained, 0)[0]
        form, rows = self._files
        return form.labelled(rows.read_all(), trained.algorithm.tasks)


def predict_blocks(
    trained: Trained, rows: RowsToPredict, numbers: Sequence[int]
) -> Iterator[Predicted]:
    """The predictions for these blocks in their order; one is read while the one before it is
    predicted. Raises UserError.
    """
    with ThreadPoolExecutor(max_workers=1) as reader:
        ahead = [reader.submit(rows.read, trained, number) for number in numbers[:1]]
        for place in range(len(numbers)):
            block, faults = ahead.pop().result()
            following = numbers[place + 1 : place + 2]
            ahead = [reader.submit(rows.read, trained, number) for number in following]
            yield Predicted(predicted_table(trained, block), faults)


def predicted_table(trained: Trained, rows: LabelledRows) -> pa.Table:
    """The predictions with the columns of predictions.parquet."""
    return table_of(trained, rows, outputs_of(trained, rows.inputs))


def outputs_of(trained: Trained, inputs: Tensor) -> dict[str, Tensor]:
    """The outputs of each task for rows [N, ...], on the CPU."""
    at_once = max(LEAST_AT_ONCE, NUMBERS_AT_ONCE // math.prod(inputs.shape[1:]))
    if trained.algorithm.transductive:
        at_once = max(1, len(inputs))
    return outputs_in_chunks(trained, inputs, at_once)


def table_of(trained: Trained, rows: LabelledRows, outputs: Mapping[str, Tensor]) -> pa.Table:
    """The columns of predictions.parquet for outputs of the rows."""
    source = trained.experiment.data
    predictions = []
    for task in trained.algorithm.tasks:
        name = task.name
        prediction = prediction_of(
            source, task, rows.targets[name], rows.masks[name], None, outputs[name]
        )
        predictions.append(prediction.with_classes(rows.class_names.get(name, ())))
    return predictions_table(predictions, rows.origins, image_resize_of(source))


def predict_table(trained: Trained, path: str) -> pa.Table:
    """The predictions for all rows of a file as one table. Raises UserError."""
    rows = RowsToPredict(trained, path)
    if trained.algorithm.transductive:
        return predicted_table(trained, rows.read_all(trained))
    blocks = list(predict_blocks(trained, rows, range(len(rows))))
    table = pa.concat_tables([block.table for block in blocks], promote_options="default")
    check_readable(path, len(table), Faults.together(block.faults for block in blocks))
    return table
