"""One check of the doctor, and what several of them use."""

from importlib import metadata
from typing import NamedTuple

GIB = 2**30
INSTALL = "python3 -m pip install -c constraints.txt"
# The oldest versions without a hole that is known and that a run could be met by, and what the hole
# was (SECURITY.md).
FLOORS = {
    "ray": (
        "2.55.0",
        "CVE-2026-41486: a Parquet file could run programs; CVE-2026-27482: a web page could end "
        "jobs",
    ),
    "torch": (
        "2.6.0",
        "CVE-2025-32434: torch.load could run programs in spite of weights_only=True",
    ),
    "pyarrow": ("14.0.1", "CVE-2023-47248: a Parquet file could run programs"),
    "jinja2": ("3.1.6", "CVE-2025-27516: a template could leave its sandbox"),
}


class Check(NamedTuple):
    """One thing that was looked at, and what was found.

    `ok` is None where it may matter; `advice` says what to do unless `ok` is True.
    """

    name: str
    ok: bool | None
    found: str
    advice: str


def warning(name: str, ok: bool, found: str, advice: str) -> Check:
    """A check that never fails: where it is not ok, it may matter."""
    if ok:
        return Check(name, True, found, advice)
    return Check(name, None, found, advice)


def version(package: str) -> str | None:
    """The installed version; None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def first_line(error: BaseException) -> str:
    """The first line of the error's message, or else its kind."""
    return (str(error).strip() or type(error).__name__).partition("\n")[0]
