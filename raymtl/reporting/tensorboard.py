"""TensorBoard's event files of a model folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

FLUSH_S = 30.0


class Events:
    """Writes the numbers of steps. Nothing depends on these files: where the storage is full or
    away, they are left, and at the next `flush` written from the last one that they are known to
    hold.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        self.folder = folder
        self.purge_step = first_step + 1
        """From here on what earlier files say counts no more."""
        self.unsure: list[Mapping[str, float | None]] = []
        self.writer: Any = None
        self._open()

    def add(self, row: Mapping[str, float | None]) -> None:
        """Takes the numbers of a step."""
        self.unsure.append(row)
        if self.writer is not None:
            self._write([row])

    def flush(self) -> None:
        """Has all numbers so far written, if that is possible now."""
        if self.writer is None:
            self._open()
            if self.writer is not None:
                self._write(self.unsure)
        if self.writer is not None:
            try:
                self.writer.flush()
            except OSError:
                self.writer = None
        if self.writer is not None and self.unsure:
            self.purge_step = int(self.unsure[-1]["step"] or 0) + 1
            self.unsure = []

    def _open(self) -> None:
        from torch.utils.tensorboard import (
            SummaryWriter,  # takes a second, which only those who train need to wait
        )

        try:
            self.writer = SummaryWriter(
                str(self.folder), purge_step=self.purge_step, flush_secs=FLUSH_S
            )
        except OSError:
            self.writer = None

    def _write(self, rows: list[Mapping[str, float | None]]) -> None:
        try:
            for row in rows:
                for name, value in row.items():
                    if name != "step" and value is not None:
                        self.writer.add_scalar(name.replace(".", "/"), value, row["step"])
        except OSError:
            self.writer = None
