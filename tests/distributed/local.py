"""A Ray of a test's own on this machine."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import ray

from raymtl.distributed import PREEMPTION_WATCHER
from raymtl.internals.ray import without_log_monitor

ROOT = str(Path(__file__).parent.parent.parent)


@contextmanager
def local_ray(**settings: Any) -> Iterator[None]:
    """Ray with these settings of `ray.init`, whose workers can import the tests.

    No actor watches for preemption, as on any single machine. They inherit the path. As a part of `runtime_env` it would make each of them start anew, in
    place of those that Ray has already started.
    """
    own = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    own |= {"PYTHONPATH": ROOT, PREEMPTION_WATCHER: "0"}
    with mock.patch.dict(os.environ, own, clear=True):
        with without_log_monitor():
            ray.init(address="local", log_to_driver=False, logging_level=logging.ERROR, **settings)
        try:
            yield
        finally:
            ray.shutdown()
