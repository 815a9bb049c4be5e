"""TensorBoard's event files of a model folder."""

import itertools
import math
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FLUSH_S = 2.0
"""How long the numbers of a step wait for those of the next ones, to be written together."""

_numbers = itertools.count()
"""One for each file of this process, so that no two have the same name."""


class Events:
    """Writes the numbers of steps. Nothing depends on these files: where the storage is full or
    away, they are left, and at the next `flush` written from the last one that they are known to
    hold.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        self.folder = folder
        self.purge_step = first_step + 1
        """From here on what earlier files say counts no more."""
        self.unsure: list[tuple[float, Mapping[str, float | None]]] = []
        """The time and the numbers of each step that the files may lack."""
        self.num_written = 0
        """How many of them were given to the file."""
        self.written_at = -math.inf
        self.path: Path | None = None
        """The file that is written; None where none could be."""
        self._open()

    def add(self, row: Mapping[str, float | None]) -> None:
        """Takes the numbers of a step."""
        self.unsure.append((time.time(), row))
        if time.monotonic() - self.written_at >= FLUSH_S:
            self._write_rest()

    def flush(self) -> None:
        """Has all numbers so far written, if that is possible now."""
        if self.path is None:
            self._open()
        self._write_rest()
        if self.path is not None and self.unsure:
            _, last = self.unsure[-1]
            self.purge_step = int(last["step"] or 0) + 1
            self.unsure, self.num_written = [], 0

    def _open(self) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        name = f"events.out.tfevents.{time.time():010.0f}.{socket.gethostname()}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / f"{name}.{os.getpid()}.{next(_numbers)}"
            path.touch(exist_ok=False)
        except OSError:
            return
        self.path = path
        self.num_written = 0
        start = SessionLog(status=SessionLog.START)
        self._write(
            Event(wall_time=time.time(), file_version="brain.Event:2"),
            Event(wall_time=time.time(), step=self.purge_step, session_log=start),
        )

    def _write_rest(self) -> None:
        """Writes what the file was not given yet."""
        self.written_at = time.monotonic()
        self._write(*(_event(at, row) for at, row in self.unsure[self.num_written :]))
        self.num_written = len(self.unsure)

    def _write(self, *events: Any) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        if self.path is None:
            return
        try:
            with self.path.open("r+b") as file:  # not anew where somebody has removed it
                file.seek(0, os.SEEK_END)
                records = RecordWriter(file)
                for event in events:
                    records.write(event.SerializeToString())
                records.flush()
        except OSError:
            self.path = None


def _event(at: float, row: Mapping[str, float | None]) -> Any:
    """All numbers of a step as one event."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    values = [
        Summary.Value(tag=name.replace(".", "/"), simple_value=value)
        for name, value in row.items()
        if name != "step" and value is not None
    ]
    return Event(wall_time=at, step=row["step"], summary=Summary(value=values))
