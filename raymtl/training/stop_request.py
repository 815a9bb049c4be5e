"""What Ray Train's controller asks of a worker: to stop after a checkpoint, or to write one now.

`StopRequest` is for a group that Ray Train is about to end in order to start a larger one. The
first worker then saves the step that it is at, so that no step is repeated:

    RUNNING ----- request(): the controller wants to end the group ----> REQUESTED
    REQUESTED --- confirm_saved(): the checkpoint is written -----------> SAVED
    SAVED ------- confirm_saved() blocks the training until the process is ended

The controller imports this module, which therefore imports nothing that takes long.
"""

from collections.abc import Callable
from enum import Enum, auto
from threading import Event
from typing import NoReturn


def wait_for_process_end() -> NoReturn:
    """Blocks the calling thread: Ray Train is about to end this process.

    A step that the thread made meanwhile would be lost, or would be newer than the last checkpoint.
    """
    never = Event()
    while True:
        never.wait()


class StopState(Enum):
    """How far a worker is with the request to stop."""

    RUNNING = auto()
    REQUESTED = auto()
    """A checkpoint is wanted, after which this process will be ended."""
    SAVED = auto()
    """That checkpoint is written."""


class StopRequest:
    """Connects the thread of a worker that trains with the one by which Ray calls the worker."""

    def __init__(self) -> None:
        self.state = StopState.RUNNING
        self._emergency_hook: Callable[[], bool] = lambda: True

    @property
    def is_requested(self) -> bool:
        """Whether this process is to stop after a checkpoint."""
        return self.state is not StopState.RUNNING

    def request(self) -> bool:
        """Asks the training to stop after a checkpoint; returns whether that is written."""
        if self.state is StopState.RUNNING:
            self.state = StopState.REQUESTED
        return self.state is StopState.SAVED

    def confirm_saved(self) -> None:
        """Tells that a checkpoint is written; where one was requested, the training stops here."""
        if self.is_requested:
            self.state = StopState.SAVED
            wait_for_process_end()

    def register_emergency_hook(self, hook: Callable[[], bool]) -> None:
        """Takes `EmergencyCheckpoint.write` of the training that runs in this process."""
        self._emergency_hook = hook

    def write_emergency_checkpoint(self) -> bool:
        """Calls the hook; returns whether there is nothing more to write."""
        return self._emergency_hook()
