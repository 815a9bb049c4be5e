"""What a check is, and what several of them use."""

from importlib import metadata
from typing import NamedTuple

GIB = 2**30
INSTALL = "python3 -m pip install -c constraints.txt"


class Check(NamedTuple):
    """One thing that was looked at. `ok` is None where it may matter; `advice` says what to do unless `ok` is True."""

    name: str
    ok: bool | None
    found: str
    advice: str


def version(package: str) -> str | None:
    """The installed version; None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def first_line(error: BaseException) -> str:
    """Of its message, or else its kind."""
    return (str(error).strip() or type(error).__name__).partition("\n")[0]
