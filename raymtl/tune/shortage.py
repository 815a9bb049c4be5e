"""Trials that Ray ends because their machine's memory runs out."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import OutOfMemoryError, RayActorError


@contextmanager
def ends_the_trial_alone() -> Iterator[None]:
    """Within it Tune takes such a trial for one whose process died: it is tried again, or fails,
    and the others go on.

    Ray 2.60 knows this error of its own not where Tune waits for its trials, and would end the
    whole search.
    """
    known = RayActorManager._actor_task_failed

    def failed(self: RayActorManager, tracked_actor_task: Any, exception: Exception) -> None:
        lost = (
            RayActorError(error_msg=str(exception))
            if isinstance(exception, OutOfMemoryError)
            else exception
        )
        known(self, tracked_actor_task=tracked_actor_task, exception=lost)

    RayActorManager._actor_task_failed = failed  # type: ignore[method-assign]
    try:
        yield
    finally:
        RayActorManager._actor_task_failed = known  # type: ignore[method-assign]
