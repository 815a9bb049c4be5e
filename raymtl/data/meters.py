"""What episodes cost: bytes of streamed files, and processor time of builders."""

import threading


class Meter:
    """Adds up an amount; any thread adds to it, and the training takes what was added."""

    def __init__(self) -> None:
        self.sources = 0
        """How many other processes it comes from, on all workers together."""
        self._amount = 0.0
        self._lock = threading.Lock()

    def add(self, amount: float) -> None:
        """Called when the amount was spent."""
        with self._lock:
            self._amount += amount

    def taken(self) -> float:
        """What was added since the last call."""
        with self._lock:
            amount, self._amount = self._amount, 0.0
        return amount


READ = Meter()
"""Bytes of blocks of streamed files, as they are in memory, that this process read; in a training
worker also those that builders read for it.
"""

BUILDER_CPU = Meter()
"""Seconds of processor time that builders took for the episodes of this worker."""
