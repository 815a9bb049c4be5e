"""A small disk for a test, which only root can mount."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(mounted: Path, size: str = "1m") -> Iterator[Path]:
    """A disk of this size at a path; the test is skipped where none can be mounted."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    mounted.mkdir()
    if _mount(f"size={size}", mounted):
        pytest.skip("no disk can be mounted here")
    try:
        yield mounted
    finally:
        subprocess.run(["umount", "--lazy", str(mounted)], check=True)


def enlarge(mounted: Path, size: str) -> None:
    """Gives a small disk another size."""
    assert _mount(f"remount,size={size}", mounted) == 0


def _mount(options: str, mounted: Path) -> int:
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(mounted)]
    return subprocess.run(command, check=False).returncode
