"""The record of every step of a training."""

from collections.abc import Sequence
from typing import Any

from raymtl.reporting.tensorboard import Events
from raymtl.storage import formats
from raymtl.storage.fence import Attempt
from raymtl.training.context import TrainContext
from raymtl.training.heartbeat import Heartbeat


class Recorder:
    """Collects the record of every step.

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
        self.path = attempt.folder / "history.parquet"
        self.rows = list(unwritten)
        self.written = 0
        self.events: Events | None = None
        if context.workers.rank == 0:
            self.rows = [row for row in formats.read_rows(self.path) if row["step"] <= first_step]
            self.written = len(self.rows)
            if self.rows:
                last = self.rows[-1]["step"]
            else:
                last = 0
            self.rows += [row for row in unwritten if row["step"] > last]
            self.events = Events(attempt.folder / "tensorboard", first_step)

    @property
    def seconds(self) -> float:
        """Training time so far, over all attempts, on the first worker."""
        return float(sum(row["seconds"] for row in self.rows))

    def add(self, row: dict[str, Any]) -> None:
        """Takes the record of a step. Raises Superseded."""
        self.attempt.check_now_and_then()
        self.heartbeat.made(row["step"])
        self.rows.append(row)
        if self.events is None:
            return
        self.events.add(row)
        self.context.log_step(row)

    @property
    def unwritten(self) -> list[dict[str, Any]]:
        """The rows that the file lacks."""
        return self.rows[self.written :]

    def flush(self) -> None:
        """Writes the file. Raises Superseded."""
        if self.events is None:
            self.rows = []
            return
        formats.write_rows(self.path, self.rows, self.attempt.publish)
        self.written = len(self.rows)
        self.events.flush()
