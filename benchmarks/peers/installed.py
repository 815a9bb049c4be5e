"""Which other libraries are there, and how those are imported that ask for more than is needed."""

import importlib.util
import sys
from collections.abc import Iterable
from importlib import metadata


class Missing(Exception):
    """A subject or a way that needs what is not installed."""


def is_installed(name: str) -> bool:
    """Whether the package can be imported, as far as that is known without importing it."""
    return importlib.util.find_spec(name) is not None


def versions(names: Iterable[str]) -> list[str]:
    """Those of the packages that are installed, with their versions where they have any."""
    found = []
    for name in names:
        if not is_installed(name):
            continue
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:  # a folder of sources
            found.append(name)
    return found


def without_init(*names: str) -> None:
    """Lets modules of these packages be imported without running the packages' own __init__.

    Those of learn2learn and LibMTL import environments, text models and data sets that a
    comparison of algorithms does not need. Parents come first.
    """
    for name in names:
        if name in sys.modules:
            continue
        spec = importlib.util.find_spec(name)
        if spec is None:
            raise Missing(name)
        sys.modules[name] = importlib.util.module_from_spec(spec)
