"""What Ray Train's controller waits for before it ends all workers, to start as many as there is
room for then.

Ray does not ask whether they are in the middle of something. Where it wants more of them, because
machines have come, the first is asked before: it keeps a checkpoint after the step that it is at,
and makes no other one, so that no step is repeated. Where one was lost or is about to be taken, the
others write what all had after the last whole step.
"""

import threading
import time
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayError

from raymtl import ray_internals

PATIENCE_S = 600.0
"""How long the controller waits for that checkpoint, at most."""
RESCUE_S = 10.0
"""How long it waits for those that are left of a group to come to the end of a step, at most."""
WRITE_S = 60.0
"""How long each of them may take to write what it has."""
POLL_S = 0.1


class StopRequest:
    """Between the thread of a worker that trains and the one that Ray calls it by."""

    def __init__(self) -> None:
        self._asked = threading.Event()
        self._kept = threading.Event()
        self._rescue: Callable[[], bool] = lambda: True

    @property
    def asked(self) -> bool:
        """Whether a checkpoint is wanted, after which this process will be ended."""
        return self._asked.is_set()

    def ask(self) -> bool:
        """Asks for it; whether it was kept."""
        self._asked.set()
        return self._kept.is_set()

    def kept(self) -> None:
        """Tells that a checkpoint was kept; where it was asked for, the process is ended in here."""
        if self.asked:
            self._kept.set()
            threading.Event().wait()

    def rescued_by(self, rescue: Callable[[], bool]) -> None:
        """Takes what writes the last whole step, which may be called while the other thread waits
        for a lost worker.
        """
        self._rescue = rescue

    def rescue(self) -> bool:
        """Has it written, and the training stopped; whether that is done."""
        return self._rescue()


STOP_REQUEST = StopRequest()
"""Of this worker process."""


def ask_for_pause() -> bool:
    """Runs in the process of the first worker, as often as the controller asks."""
    return STOP_REQUEST.ask()


def rescue() -> bool:
    """Runs in the process of a worker that may not know yet that another is lost."""
    return STOP_REQUEST.rescue()


class CheckpointBeforeShutdown:
    """Has the workers keep what they have done before Ray Train's controller, in whose process this
    is, ends them.
    """

    def __init__(self) -> None:
        self.workers: Any = None
        self.resizing = False

    def on_group_start(self, worker_group: Any) -> None:
        self.workers = worker_group
        self.resizing = False

    def before_group_shutdown(self, worker_group: Any) -> None:
        until = time.monotonic() + RESCUE_S
        while not self.resizing and time.monotonic() < until:
            running = ray_internals.running_workers(worker_group, POLL_S)
            rescued = [self._rescued(worker) for worker in running]
            if all(rescued):
                return
            time.sleep(POLL_S)

    @staticmethod
    def _rescued(worker: Any) -> bool:
        """Whether a worker whose training still runs, or waits, has nothing more to keep."""
        try:
            done: bool = ray.get(worker.execute_async(rescue), timeout=WRITE_S)
            return done
        except RayError:  # lost, or it does not answer in time
            return True

    def before_resize(self) -> None:
        self.resizing = True
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until and not self._kept():
            time.sleep(POLL_S)

    def _kept(self) -> bool:
        # Its side effect is wanted, too: a worker that reports waits until the controller has taken
        # that.
        status = self.workers.poll_status(timeout=POLL_S)
        if status.errors or status.finished:
            return True  # what they keep, they have kept
        try:
            kept: bool = self.workers.execute_single(0, ask_for_pause)
            return kept
        except (
            RayError
        ):  # lost since: as after every loss, training goes on from the checkpoint before
            return True
