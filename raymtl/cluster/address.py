"""Which cluster is meant, and whether anything listens there."""

import os
import socket
from urllib.parse import urlsplit

from raymtl.cluster.doctor.check import first_line

# A refused connection comes back at once, a dropped one never.
TCP_S = 3.0


def resolve(address: str | None) -> str | None:
    """Which cluster is meant; None for Ray on this machine."""
    # As ray.init does it: RAY_ADDRESS says which cluster `auto` is, and `local` is none.
    if address in (None, "", "auto"):
        address = os.environ.get("RAY_ADDRESS") or address
    if address in (None, "", "local"):
        return None
    return address


def refusal(address: str) -> str | None:
    """Why no connection to the address comes about; None where something listens, or Ray is to find
    it (`auto`).

    To be asked before ray.init, which tries a dead address for minutes.
    """
    if address == "auto":
        return None
    where = endpoint(address)
    if where is None:
        return "expected HOST:PORT, ray://HOST:PORT or auto"
    try:
        socket.create_connection(where, timeout=TCP_S).close()
    except OSError as error:
        return error.strerror or first_line(error)
    return None


def endpoint(address: str) -> tuple[str, int] | None:
    """Host and port, where the address has them."""
    try:
        parts = urlsplit(f"//{address.rpartition('://')[2]}")
        if parts.hostname and parts.port:
            return (parts.hostname, parts.port)
        return None
    except ValueError:
        return None
