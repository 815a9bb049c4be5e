"""Several processes for a test, which start within milliseconds."""

import multiprocessing
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from typing import Any

from torch.multiprocessing.spawn import start_processes

# One server imports these once and forks every process of every test from itself.
multiprocessing.set_forkserver_preload(["torch", "tests.conftest", "raymtl.training.loop"])


def run_on(count: int, target: Callable[..., None], *args: Any) -> None:
    """Runs `target(rank, *args)` for every rank in a process of its own; raises what one raises."""
    start_processes(target, args, nprocs=count, start_method="forkserver")


def new_process(target: Callable[..., None], *args: Any) -> BaseProcess:
    """A process that is not started yet and that the end of another does not end."""
    return multiprocessing.get_context("forkserver").Process(target=target, args=args)
