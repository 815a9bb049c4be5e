"""How many bytes of streamed files this process has read."""

import threading


class ReadMeter:
    """Counts bytes; threads that read add to it, and the training takes what was added."""

    def __init__(self) -> None:
        self._bytes = 0
        self._lock = threading.Lock()

    def add(self, num_bytes: int) -> None:
        """Called when a block was read."""
        with self._lock:
            self._bytes += num_bytes

    def taken(self) -> int:
        """The bytes since the last call."""
        with self._lock:
            num_bytes, self._bytes = self._bytes, 0
        return num_bytes


READ = ReadMeter()
"""What this process has read."""
