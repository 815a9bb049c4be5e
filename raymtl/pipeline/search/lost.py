"""Reports a trial whose process or machine is lost in one line."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ray.exceptions import RayActorError

from raymtl.cluster.doctor.check import first_line
from raymtl.internals import ray as ray_internals


class _OneLine(logging.Filter):
    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__()
        self.say = say

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info:
            error = record.exc_info[1]
        else:
            error = None
        if not isinstance(error, RayActorError):
            return True  # a fault of ours, whose traceback is wanted
        trial = record.getMessage().rpartition(" ")[2]
        self.say(
            f"{trial}: its process or machine is lost ({first_line(error).rstrip('.')}). It goes "
            "on from its last checkpoint, at most train.max_failures times."
        )
        return False


@contextmanager
def lost_in_one_line(say: Callable[[str], None]) -> Iterator[None]:
    """During the `with` block, a lost trial is reported in one line instead of Ray's traceback."""
    logger = ray_internals.tune_logger()
    one_line = _OneLine(say)
    logger.addFilter(one_line)
    try:
        yield
    finally:
        logger.removeFilter(one_line)
