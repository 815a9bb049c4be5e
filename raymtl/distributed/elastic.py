"""Makes the workers of a training write a checkpoint before Ray Train's controller ends them.

The controller ends a complete group of workers if one was lost, or if new machines allow a larger
group. It does so even in the middle of a step. The protocol between the controller and a worker is
drawn in `training.stop_request`.
"""

import time
from typing import Any

import ray
from ray.exceptions import RayError

from raymtl.internals import ray as ray_internals
from raymtl.training.stop_request import StopRequest

REQUEST_S = 600.0
"""How long the controller waits for the checkpoint that it requested, at most."""
EMERGENCY_S = 10.0
"""How long it waits until all remaining workers of a group are between two steps, at most."""
WRITE_S = 60.0
"""How long each worker may take to write its emergency checkpoint."""
POLL_S = 0.1

STOP_REQUEST = StopRequest()
"""The one of this worker process."""


def request_stop() -> bool:
    """Runs in the process of the first worker, as often as the controller asks."""
    return STOP_REQUEST.request()


def write_emergency_checkpoint() -> bool:
    """Runs in the process of a worker that may not know yet that another is lost."""
    return STOP_REQUEST.write_emergency_checkpoint()


class CheckpointBeforeShutdown:
    """Waits in the controller's process until the workers have written their checkpoint."""

    def __init__(self) -> None:
        self.workers: Any = None
        self.resizing = False

    def on_group_start(self, worker_group: Any) -> None:
        """Remembers the group, which `before_resize` is not given."""
        self.workers = worker_group
        self.resizing = False

    def before_resize(self) -> None:
        """Requests a checkpoint of the first worker, before a larger group is started."""
        self.resizing = True
        until = time.monotonic() + REQUEST_S
        while time.monotonic() < until and not self._is_saved():
            time.sleep(POLL_S)

    def before_group_shutdown(self, worker_group: Any) -> None:
        """Makes the workers that remain of a group write a checkpoint of the last step."""
        until = time.monotonic() + EMERGENCY_S
        while not self.resizing and time.monotonic() < until:
            running = ray_internals.running_workers(worker_group, POLL_S)
            written = [self._writes_emergency_checkpoint(worker) for worker in running]
            if all(written):
                return
            time.sleep(POLL_S)

    @staticmethod
    def _writes_emergency_checkpoint(worker: Any) -> bool:
        """Whether a worker whose training still runs, or waits, has nothing more to write."""
        try:
            written: bool = ray.get(
                worker.execute_async(write_emergency_checkpoint), timeout=WRITE_S
            )
            return written
        except RayError:  # the worker is lost, or does not answer in time
            return True

    def _is_saved(self) -> bool:
        # Polling has an effect that is needed: a worker that reports scores waits until the
        # controller has taken them.
        status = self.workers.poll_status(timeout=POLL_S)
        if status.errors or status.finished:
            return True  # such workers write their checkpoints by themselves
        try:
            saved: bool = self.workers.execute_single(0, request_stop)
            return saved
        except RayError:
            # The worker is lost: as after every loss, training resumes from the checkpoint before.
            return True
