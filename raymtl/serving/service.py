"""Starts a service on this machine or on a cluster, and ends it."""

import logging
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager

import ray
from ray import serve

from raymtl.cluster.doctor.check import first_line
from raymtl.distributed.connection import connected
from raymtl.serving.on_ray import build
from raymtl.serving.settings import ServeSettings
from raymtl.types import UserError

NAME = "raymtl"
"""Of the application on Ray Serve."""
QUIET = {"log_level": "ERROR", "enable_access_log": False}
"""What Ray Serve writes to its log."""


@contextmanager
def serving(
    settings: ServeSettings,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    address: str | None = None,
) -> Iterator[str]:
    """The URL of a service that answers while the `with` block runs.

    Args:
        settings: the run and the limits.
        host: where it listens; beyond this machine only with a token.
        port: 0 for one that is free.
        address: of a running Ray cluster; else RAY_ADDRESS, else Ray starts here.

    Raises:
        UserError: the port is taken, or the machines have too few cores or GPUs.
    """
    port = _free_port(host, port)
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    with connected(address):
        _check_resources(settings)
        serve.start(
            http_options={"host": host, "port": port, "request_timeout_s": None},
            proxy_location="HeadOnly",
            logging_config=QUIET,
        )
        try:
            try:
                serve.run(build(settings), name=NAME, route_prefix="/", logging_config=QUIET)
            except RuntimeError as error:
                raise UserError(
                    f"raymtl serve: Ray Serve does not start the service ({first_line(error)}). "
                    "The logs of Ray's processes say why."
                ) from None
            yield f"http://{host}:{port}"
        finally:
            serve.shutdown()


def _free_port(host: str, port: int) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with closing(socket.socket(family, socket.SOCK_STREAM)) as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((host, port))
        except OSError as error:
            raise UserError(
                f"--port: {host}:{port} cannot be listened on ({error.strerror}). Choose another."
            ) from None
        return int(tried.getsockname()[1])


def _check_resources(settings: ServeSettings) -> None:
    """Raises UserError where Ray Serve would wait for machines without end."""
    there = ray.cluster_resources()
    for key, name, each in (("--cpus", "CPU", settings.cpus), ("--gpus", "GPU", settings.gpus)):
        asked = settings.replicas * each
        if asked > there.get(name, 0):
            raise UserError(
                f"{key}: expected at most the {there.get(name, 0):g} {name}s of the machines, got "
                f"{settings.replicas} replicas of {each:g}. Lower --replicas or {key}."
            )
