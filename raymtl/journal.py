"""The study's journal, on storage that may be full or away for a while, or lose its power in the middle of a line."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

from raymtl import storage


class Journal(JournalFileBackend):
    """Optuna's journal of JSON lines, which it reads; but it would leave half a line when the storage is full or the
    power goes, write the next one behind it, and then read the study no more."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = JournalFileSymlinkLock(str(path))
        storage.patiently(path, lambda: super(Journal, self).__init__(str(path), self.lock))

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        """The entries from this one on."""
        read = super().read_logs
        return iter(storage.patiently(self.path, lambda: list(read(log_number_from)), there=True))

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Adds entries, all or none."""
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode()
        storage.patiently(self.path, self.lock.acquire, there=True)
        try:
            storage.append(self.path, lines)
        finally:
            storage.patiently(self.path, self._release)

    def _release(self) -> None:
        try:
            self.lock.release()
        except RuntimeError as error:  # by which Optuna says whatever the system said
            if not isinstance(error.__context__, FileNotFoundError):
                raise  # else it was released by an attempt before
