"""Emergency checkpoints: what several workers save when one of them is lost, or before they end.

All workers hold the same parameters after a step. A worker keeps a snapshot of them until it moves
its parameters again, so any worker can write the checkpoint of the last step that all have made.
At most the step at which the worker was lost is repeated.

`EmergencyCheckpoint` has one of three states in each worker:

    NO_SNAPSHOT --- take(): a step is made ------------> SNAPSHOT
    SNAPSHOT ------ before_move(): the next one moves --> NO_SNAPSHOT
    SNAPSHOT ------ write(): a worker is lost ---------> STOPPED
    STOPPED ------- before_move() blocks the training until the process is ended

`write` is called by one of two threads. The thread that trains calls it when a collective operation
fails (`write_in_turn`). Ray Train's controller calls it from another thread when the one that
trains waits for a worker that fell silent. A worker in NO_SNAPSHOT is just moving its parameters
and is asked again. Workers write one after the other, and leave a step alone that is saved already.
"""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from enum import Enum, auto
from pathlib import Path
from typing import NamedTuple

import torch

from raymtl.storage.fence import Superseded
from raymtl.training import checkpoint
from raymtl.training.checkpoint import Progress, Snapshot
from raymtl.training.stop_request import wait_for_process_end

TURN_S, LONGEST_TURN_S = 0.02, 0.5
"""How long a worker leaves the writing to each worker before it, and to all of them at most."""

Write = Callable[["StepSnapshot"], None]
"""Writes the checkpoint of a snapshot; the caller holds the lock."""


class StepSnapshot(NamedTuple):
    """All that a checkpoint of a step is made of; true until the parameters move."""

    state: Snapshot
    optimizer: torch.optim.Optimizer
    progress: Progress


class SnapshotState(Enum):
    """Whether a worker can write the checkpoint of a whole step."""

    NO_SNAPSHOT = auto()
    """The parameters are being moved, or no step is made yet."""
    SNAPSHOT = auto()
    """The parameters are those after a step that all workers have made."""
    STOPPED = auto()
    """The checkpoint is written, and this process makes no other step."""


class EmergencyCheckpoint:
    """The snapshot of one worker. Any thread may call its methods."""

    def __init__(self, folder: Path, write: Write) -> None:
        self.folder, self._write = folder, write
        self.lock = threading.Lock()
        """Held while a checkpoint is written, and while the state changes."""
        self.state = SnapshotState.NO_SNAPSHOT
        self._snapshot: StepSnapshot | None = None

    def take(self, snapshot: StepSnapshot) -> None:
        """Holds the snapshot of the step that was just made."""
        with self.lock:
            self._snapshot, self.state = snapshot, SnapshotState.SNAPSHOT

    def before_move(self) -> None:
        """Drops the snapshot, because the parameters are about to move."""
        with self.lock:
            if self.state is not SnapshotState.STOPPED:
                self._snapshot, self.state = None, SnapshotState.NO_SNAPSHOT
                return
        wait_for_process_end()

    def write(self) -> bool:
        """Writes the checkpoint of the snapshot, unless another worker did; stops the training.

        Returns False where there is no snapshot, because the parameters are just being moved.
        Nothing is written where another attempt took the place of this one.
        """
        with self.lock:
            if self._snapshot is None:
                return False
            self.state = SnapshotState.STOPPED
            if not checkpoint.is_saved(self.folder, self._snapshot.progress.step):
                with suppress(Superseded):
                    self._write(self._snapshot)
            return True

    def write_in_turn(self, rank: int) -> None:
        """Writes it from the thread that trains, after the workers of lower rank."""
        time.sleep(min(rank * TURN_S, LONGEST_TURN_S))
        self.write()
