"""The record of every step of a training."""

from collections.abc import Sequence
from typing import Any

from raymtl.reporting.tensorboard import Events
from raymtl.storage import formats
from raymtl.storage.fence import Attempt
from raymtl.training.context import TrainContext
from raymtl.training.heartbeat import Heartbeat
from raymtl.training.left_out import LeftOutRecord


class Recorder:
    """Collects the record of every step, and the names of files that were left out.

    The first worker writes history.parquet and TensorBoard's files, and logs the step. The others
    hold the rows that the file lacks, because one of them may have to write the emergency
    checkpoint, of which these rows are a part.
    """

    def __init__(
        self,
        attempt: Attempt,
        first_step: int,
        unwritten: Sequence[dict[str, Any]],
        context: TrainContext,
    ) -> None:
        self.attempt, self.context = attempt, context
        self.heartbeat = Heartbeat(attempt, context.workers, first_step)
        self.left_out = LeftOutRecord(attempt, context.workers.rank)
        self.path = attempt.folder / "history.parquet"
        self.unwritten = list(unwritten)
        """The rows that the file lacks."""
        self.written = formats.table_of([])
        """What the file holds, on the first worker."""
        self.seconds = 0.0
        """Training time so far, over all attempts, on the first worker."""
        self.events: Events | None = None
        if context.workers.rank == 0:
            rows = [row for row in formats.read_rows(self.path) if row["step"] <= first_step]
            self.written = formats.table_of(rows)
            last = max((row["step"] for row in rows), default=0)
            self.unwritten = [row for row in unwritten if row["step"] > last]
            self.seconds = float(sum(row["seconds"] for row in rows + self.unwritten))
            self.events = Events(attempt.folder / "tensorboard", first_step)

    def add(self, row: dict[str, Any]) -> None:
        """Takes the record of a step. Raises Superseded."""
        self.attempt.check_now_and_then()
        self.heartbeat.made(row["step"])
        self.left_out.look()
        self.unwritten.append(row)
        self.seconds += row["seconds"]
        if self.events is None:
            return
        self.events.add(row)
        self.context.log_step(row)

    def flush(self) -> None:
        """Writes the file. Raises Superseded."""
        self.left_out.flush()
        if self.events is None:
            self.unwritten = []
            return
        table = formats.table_of(self.unwritten, self.written)
        formats.write_table(self.path, table, self.attempt.publish)
        self.written, self.unwritten = table, []
        self.events.flush()
