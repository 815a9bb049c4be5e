"""The study's journal, on storage that may be full or unreachable for a while, or lose power in the
middle of a line.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

from raymtl.storage import atomic
from raymtl.storage.fence import Attempt


class Journal(JournalFileBackend):
    """Optuna's journal of JSON lines, with atomic appends. Optuna itself would leave half a line if
    the storage is full or the power fails, append the next line to it, and then be unable to read
    the study.

    With an `attempt`, entries are appended only while it is the latest attempt at the run; after
    that Superseded is raised.
    """

    def __init__(self, path: Path, attempt: Attempt | None = None) -> None:
        self.path, self.attempt = path, attempt
        self.lock = JournalFileSymlinkLock(str(path))
        if attempt is not None:
            attempt.renew(path)
        atomic.patiently(path, lambda: super(Journal, self).__init__(str(path), self.lock))

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:  # type: ignore[override] # no generator
        """The entries from number `log_number_from` on."""
        read = super().read_logs
        return iter(
            atomic.patiently(self.path, lambda: list(read(log_number_from)), must_exist=True)
        )

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Appends entries, all or none."""
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode()
        atomic.patiently(self.path, self._acquire, must_exist=True)
        try:
            if self.attempt is None:
                atomic.append(self.path, lines)
            else:
                self.attempt.append(self.path, lines)
        finally:
            atomic.patiently(self.path, self._release)

    def _acquire(self) -> None:
        if self.attempt is not None:
            self.attempt.check()
        self.lock.acquire()

    def _release(self) -> None:
        try:
            self.lock.release()
        except RuntimeError as error:  # by which Optuna says whatever the system said
            if not isinstance(error.__context__, FileNotFoundError):
                raise  # else it was released by an attempt before
