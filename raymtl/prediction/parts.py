"""Predictions in files of some thousand rows, each written as a whole."""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from raymtl.data.shards.store import Store
from raymtl.data.tables.faults import Faults
from raymtl.features.network import read_shape
from raymtl.prediction.new_rows import Predicted, RowsToPredict, predict_blocks
from raymtl.prediction.output import OUTPUT
from raymtl.prediction.trained import Trained
from raymtl.storage import strict_json

MOST_ROWS = 1 << 16
"""Of a file, unless a block has more."""
MOST_NUMBERS = 1 << 24
"""Of the inputs and maps behind a file's rows, about."""
FAULTS = b"raymtl.faults"
"""In the metadata of a file: what of its rows is not as it should be, as JSON."""


class Part(NamedTuple):
    """Some blocks in a row, whose predictions are one file."""

    number: int
    first_block: int
    end_block: int

    @property
    def name(self) -> str:
        """The name of its file."""
        return f"part-{self.number:06d}.parquet"


class PartEntry(NamedTuple):
    """What is known of a file that was written."""

    number: int
    rows: int
    faults: Faults


class Job(NamedTuple):
    """A model, the rows that it predicts, and where the files go."""

    trained: Trained
    rows: RowsToPredict
    output: str


Driver = Callable[[Job, Sequence[Part]], Iterator[PartEntry]]
"""Writes files, in any order."""


def plan_parts(trained: Trained, rows: RowsToPredict) -> list[Part]:
    """The parts of all blocks, each of about MOST_ROWS rows, or fewer where a row is large."""
    shapes = [read_shape(trained.experiment), trained.experiment.data.input_shape]
    shapes += [task.target_shape for task in trained.algorithm.tasks]
    numbers = sum(math.prod(shape) for shape in shapes)
    wanted = min(MOST_ROWS, max(1, MOST_NUMBERS // numbers))
    parts: list[Part] = []
    first, size = 0, 0
    for number in range(len(rows)):
        if size and size + rows.size(number) > wanted:
            parts.append(Part(len(parts), first, number))
            first, size = number, 0
        size += rows.size(number)
    return [*parts, Part(len(parts), first, len(rows))]


def predict_parts(job: Job, parts: Sequence[Part]) -> Iterator[PartEntry]:
    """Writes the files of these parts in their order; one is written while the next is predicted.

    Raises UserError for rows that cannot be predicted, and for storage that cannot be written.
    """
    store = Store(job.output, OUTPUT)
    numbers = [number for part in parts for number in range(part.first_block, part.end_block)]
    blocks = predict_blocks(job.trained, job.rows, numbers)
    with ThreadPoolExecutor(max_workers=1) as writer:
        before: Future[PartEntry] | None = None
        for part in parts:
            of_part = list(islice(blocks, part.end_block - part.first_block))
            if before is not None:
                yield before.result()
            before = writer.submit(_write, store, part, of_part)
        if before is not None:
            yield before.result()


def _write(store: Store, part: Part, blocks: Sequence[Predicted]) -> PartEntry:
    faults = Faults.together(block.faults for block in blocks)
    sink = pa.BufferOutputStream()
    rows = 0
    with pq.ParquetWriter(sink, blocks[0].table.schema, **writing(blocks[0].table)) as writer:
        for block in blocks:
            writer.write_table(block.table)
            rows += len(block.table)
        writer.add_key_value_metadata({FAULTS: strict_json.dumps(faults).encode()})
    store.publish(part.name, sink.getvalue())
    return PartEntry(part.number, rows, faults)


def writing(table: pa.Table) -> dict[str, list[str]]:
    """How the columns are written: by a dictionary those that repeat a few values."""
    repeating = [field.name for field in table.schema if pa.types.is_string(field.type)]
    return {"use_dictionary": repeating}


def complete_entry(store: Store, part: Part) -> PartEntry | None:
    """What is known of a file that an earlier command wrote; None where it is missing."""
    if not store.holds(part.name):
        return None
    about = store.read_shard(part.name, pq.read_metadata)
    faults = json.loads(about.metadata[FAULTS])
    return PartEntry(part.number, about.num_rows, Faults(*map(tuple, faults)))
