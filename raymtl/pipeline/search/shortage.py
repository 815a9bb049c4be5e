"""Trials that Ray ends because their machine's memory runs out."""

from collections.abc import Iterator
from contextlib import contextmanager

from ray.exceptions import OutOfMemoryError, RayActorError

from raymtl.internals import ray as ray_internals


@contextmanager
def ends_the_trial_alone() -> Iterator[None]:
    """During the `with` block, Tune treats such a trial like one whose process died: it is retried
    or fails, and the others continue.

    Ray 2.60 does not handle its own error while Tune waits for trials, and would end the complete
    search.
    """

    def as_lost(error: Exception) -> Exception:
        if isinstance(error, OutOfMemoryError):
            return RayActorError(error_msg=str(error))
        return error

    with ray_internals.translated_task_errors(as_lost):
        yield
