"""Trials that Ray ends because their machine's memory runs out."""

from collections.abc import Iterator
from contextlib import contextmanager

from ray.exceptions import OutOfMemoryError, RayActorError

from raymtl import ray_internals


@contextmanager
def ends_the_trial_alone() -> Iterator[None]:
    """Within it Tune takes such a trial for one whose process died: it is tried again, or fails,
    and the others go on.

    Ray 2.60 does not expect its own error where Tune waits for its trials, and would end the whole
    search.
    """

    def as_lost(error: Exception) -> Exception:
        if isinstance(error, OutOfMemoryError):
            return RayActorError(error_msg=str(error))
        return error

    with ray_internals.translated_task_errors(as_lost):
        yield
