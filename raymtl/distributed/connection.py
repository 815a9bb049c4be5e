"""Connects to Ray, or starts it on this machine."""

import contextlib
import logging
import os
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import ray
import ray.data
import ray.train

from raymtl.cluster.address import refusal, resolve
from raymtl.cluster.doctor.check import first_line
from raymtl.distributed import PREEMPTION_WATCHER, worker_environment
from raymtl.internals import ray as ray_internals
from raymtl.schema.component_modules import local_modules
from raymtl.types import UserError

ANSWER_S = 20.0
"""How long Ray may take to answer at an address where something listens."""


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Ray for the `with` block; see `start_ray`. A connection of the process's own is used as it
    is, and stays.

    Raises UserError if Ray cannot be reached or started, or if `address` is of another cluster than
    this process is connected to.
    """
    if ray.is_initialized():
        _check_connected_to(address)
        yield
        return
    start_ray(address)
    try:
        yield
    finally:
        ray.shutdown()


def _check_connected_to(address: str | None) -> None:
    connected_to = ray.get_runtime_context().gcs_address
    if address not in (None, "auto", connected_to):
        raise UserError(
            f"--address: expected none, for this process is connected to Ray at {connected_to} "
            f"already, got {address}. Leave it away, or call ray.shutdown() first."
        )


def start_ray(address: str | None) -> None:
    """Connects to `address` or `RAY_ADDRESS`, or starts Ray on this machine if neither is given.

    Raises UserError if Ray cannot be reached or started.
    """
    warnings.filterwarnings("ignore", category=FutureWarning, module="ray|torch.distributed")
    check_address(address)
    address = resolve(address)
    if address is None:
        os.environ.setdefault(PREEMPTION_WATCHER, "0")
    try:
        with ray_internals.without_log_monitor():
            ray.init(
                address=address or "local",
                logging_level=logging.ERROR,
                log_to_driver=False,
                runtime_env=_runtime_env() if address else None,
            )
    except Exception as error:  # of this very class where a start times out
        if address is None:
            raise UserError(
                f"Ray does not start on this machine ({first_line(error)}). Ask `raymtl doctor` "
                "why."
            ) from None
        raise _unreachable(address, first_line(error)) from None


def _runtime_env() -> dict[str, Any]:
    """What other machines get: the environment of workers, and the modules of own components."""
    env: dict[str, Any] = {"env_vars": worker_environment()}
    modules = local_modules()
    if modules:
        env["py_modules"] = modules
    return env


def check_address(address: str | None) -> None:
    """Raises UserError if Ray does not listen at `address` or `RAY_ADDRESS`."""
    address = resolve(address)
    if address:
        reason = refusal(address) or _silence(address)
    else:
        reason = None
    if address and reason:
        raise _unreachable(address, reason)


def _silence(address: str) -> str | None:
    """What there is instead of Ray, which `ray.init` would try to talk to for minutes; None where
    Ray answers.
    """
    if "://" in address or address == "auto":
        return None
    answered = threading.Event()

    def ask() -> None:
        with contextlib.suppress(Exception):  # another version, or no token: ray.init says that
            ray_internals.connect_to_gcs(address)
        answered.set()

    threading.Thread(target=ask, daemon=True).start()
    if answered.wait(ANSWER_S):
        return None
    return f"something listens there that is not Ray's, or not after {ANSWER_S:g} s"


def _unreachable(address: str, reason: str) -> UserError:
    return UserError(
        f"--address: cannot reach Ray at {address} ({reason}). Start the cluster, or leave "
        "--address and RAY_ADDRESS away to start Ray here."
    )
