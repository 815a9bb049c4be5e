"""Pictures and maps of streamed files that cannot be read, and are left out of the episodes."""

import threading
from collections.abc import Iterable


class LeftOut:
    """Collects names of files; any thread adds to them, and the training takes them."""

    def __init__(self) -> None:
        self._names: set[str] = set()
        self._lock = threading.Lock()

    def add(self, names: Iterable[str]) -> None:
        """Called at every step that would draw from these files."""
        with self._lock:
            self._names.update(names)

    def taken(self) -> set[str]:
        """What was added since the last call."""
        with self._lock:
            names, self._names = self._names, set()
        return names


LEFT_OUT = LeftOut()
"""Those of this process; in a training worker also those that builders left out for it."""
