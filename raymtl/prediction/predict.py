"""`raymtl predict`: the predictions for all rows of a file, in a file or a folder.

A driver writes the files of a folder: `predict_parts` in this process, or Ray Data on all machines.
Each file is written whole or not at all, and `_SUCCESS` when all are there. The same command
continues one that was interrupted.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from raymtl import __version__
from raymtl.data.shards.store import Store
from raymtl.data.tables.faults import Faults, check_readable
from raymtl.evaluation.thresholds import kept_thresholds
from raymtl.prediction.new_rows import Predicted, RowsToPredict, predict_blocks, predicted_table
from raymtl.prediction.output import COMPLETE, OUTPUT, PLAN
from raymtl.prediction.parts import (
    Driver,
    Job,
    Part,
    PartEntry,
    complete_entry,
    plan_parts,
    predict_parts,
    writing,
)
from raymtl.prediction.trained import Trained
from raymtl.storage import atomic, strict_json
from raymtl.storage.notes import Note
from raymtl.types import UserError

Report = Callable[[int, int], None]
"""Is told how many rows are done, and how many there are."""
FORMAT = 1
"""Raised when files of an earlier version cannot be continued."""


@dataclass(frozen=True)
class PredictedFiles:
    """What `predict` wrote."""

    output: str
    """The file, or the folder or URL with `part-000000.parquet` and so on."""
    num_rows: int
    num_files: int
    notes: tuple[Note, ...] = ()
    """On rows that are left out, and pictures unlike those of the run."""


def predict_to_file(
    trained: Trained, rows: RowsToPredict, path: Path, report: Report
) -> PredictedFiles:
    """Writes the predictions to one file, block by block. Raises UserError."""
    faults: list[Faults] = []
    done = 0

    def write(aside: Path) -> None:
        nonlocal done
        done = 0
        faults.clear()
        blocks = _blocks(trained, rows)
        first = next(blocks)
        schema = first.table.schema
        with pq.ParquetWriter(aside, schema, **writing(first.table)) as writer:
            for block in chain([first], blocks):
                writer.write_table(block.table)
                faults.append(block.faults)
                done += len(block.table)
                report(done, rows.num_rows)

    try:
        atomic.publish(path, write)
    except OSError as error:
        raise UserError(
            f"{OUTPUT}: {path} cannot be written ({error.strerror}). Choose another place."
        ) from None
    return PredictedFiles(str(path), done, 1, _notes(rows, faults, done))


def _blocks(trained: Trained, rows: RowsToPredict) -> Iterator[Predicted]:
    """The predictions for all blocks; together where they depend on each other."""
    if trained.algorithm.transductive:
        return iter([Predicted(predicted_table(trained, rows.read_all(trained)), Faults())])
    return predict_blocks(trained, rows, range(len(rows)))


def check_parts(trained: Trained, rows: RowsToPredict) -> None:
    """Raises UserError for a model and rows that cannot be predicted block by block."""
    if trained.algorithm.transductive:
        raise UserError(
            f"{OUTPUT}: expected a file whose name ends in .parquet, for this model normalises all "
            "rows together (encoder.transductive), got a folder. Give a file."
        )
    if not rows.has_blocks:
        raise UserError(
            f"{OUTPUT}: expected a file whose name ends in .parquet, for this run is on none of "
            "your own files, and its rows are read at once, got a folder. Give a file."
        )


def predict_to_folder(
    job: Job, *, driver: Driver = predict_parts, report: Report
) -> PredictedFiles:
    """Writes the predictions as files of a folder or a URL; those that an earlier command has
    written stay. Raises UserError.
    """
    store = Store(job.output, OUTPUT)
    parts = plan_parts(job.trained, job.rows)
    _claim(store, job, parts)
    entries: dict[int, PartEntry] = {}
    for part in parts:
        entry = complete_entry(store, part)
        if entry is not None:
            entries[part.number] = entry
    left = [part for part in parts if part.number not in entries]
    done = sum(entry.rows for entry in entries.values())
    for entry in driver(job, left):
        entries[entry.number] = entry
        done += entry.rows
        report(done, job.rows.num_rows)
    notes = _notes(job.rows, [entries[part.number].faults for part in parts], done)
    for name in store.sizes():
        if name.startswith("."):  # of a process that was killed
            store.remove(name)
    store.publish(COMPLETE, b"")
    return PredictedFiles(job.output, done, len(parts), notes)


def _notes(rows: RowsToPredict, faults: Sequence[Faults], num_rows: int) -> tuple[Note, ...]:
    """Raises UserError where no row could be read."""
    together = Faults.together(faults)
    check_readable(rows.path, num_rows, together)
    return (*rows.notes(), *together.notes())


def _claim(store: Store, job: Job, parts: Sequence[Part]) -> None:
    """Says in the folder what is predicted. Raises UserError if it has other predictions."""
    plan = _plan(job, parts)
    if PLAN not in store.sizes():
        store.publish(PLAN, plan)
        return
    if store.read(PLAN) != plan:
        raise UserError(
            f"{OUTPUT}: expected an empty folder, or one that the same command began, got "
            f"{store.shown}, which another model or other rows were predicted to. Choose another "
            "folder, or remove this one."
        )


def _plan(job: Job, parts: Sequence[Part]) -> bytes:
    """The model, the rows and the files to write, as JSON."""
    plan: dict[str, Any] = {
        "format": FORMAT,
        "raymtl": __version__,
        "rows": job.rows.path,
        "num_rows": job.rows.num_rows,
        "files": job.rows.fingerprint(),
        "model": _digest(job.trained),
        "parts": len(parts),
        "first_blocks": hashlib.sha256(repr([tuple(part) for part in parts]).encode()).hexdigest(),
    }
    return (strict_json.dumps(plan, indent=2) + "\n").encode()


def _digest(trained: Trained) -> str:
    """The SHA-256 of a model."""
    digest = hashlib.sha256(trained.experiment.model_dump_json().encode())
    digest.update(repr(kept_thresholds(trained.algorithm.tasks)).encode())
    values = {**trained.params, **trained.algorithm.constants()}
    for name in sorted(values):
        digest.update(name.encode())
        digest.update(values[name].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
