"""Atomic writes to storage that may be full or unreachable for a while. A file or a line is written
completely or not at all.
"""

import errno
import logging
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout

logger = logging.getLogger("raymtl")

PATIENCE_S = 300.0
"""How long storage that is full or away is waited for."""
RETRY_S = 2.0
AWAY = frozenset(
    getattr(errno, name)
    for name in (
        "ENOSPC",
        "EDQUOT",
        "EIO",
        "ESTALE",
        "ETIMEDOUT",
        "ENOTCONN",
        "EHOSTDOWN",
        "EHOSTUNREACH",
        "EROFS",
    )
)
"""What the system says of such storage."""
AWAITED: list[Path] = []
"""What is being waited for in this process because its storage is full or away."""
LINE = b"\n"

Result = TypeVar("Result")


def patiently(path: Path, act: Callable[[], Result], *, must_exist: bool = False) -> Result:
    """Calls `act`, which reads or writes `path`, and returns its result.

    If the storage is full or unreachable, `act` is called again until `PATIENCE_S` have passed;
    then its error is raised. With `must_exist` the path has been written before, so if it is
    missing the storage counts as unreachable.
    """
    until = time.monotonic() + PATIENCE_S
    is_reported = False
    try:
        while True:
            try:
                return act()
            except Exception as error:
                away = is_of_storage(error) or (must_exist and isinstance(error, FileNotFoundError))
                if not away or time.monotonic() >= until:
                    raise
                if not is_reported:
                    logger.warning("%s: %s; trying again for %.0f s.", path, error, PATIENCE_S)
                    AWAITED.append(path)
                    is_reported = True
                time.sleep(RETRY_S)
    finally:
        if is_reported:
            AWAITED.remove(path)


def is_of_storage(error: BaseException) -> bool:
    """Whether the storage caused an error that may pass, even if a library has wrapped the system's
    error.
    """
    if isinstance(error, OSError) and error.errno:
        return error.errno in AWAY
    if any(
        f"os error {code}" in str(error) for code in AWAY
    ):  # safetensors, which writes by itself
        return True
    return error.__context__ is not None and is_of_storage(error.__context__)


def reach(folder: Path) -> None:
    """Waits until a folder can be read, and creates it if it never existed. After that, a missing
    file in it does not exist.
    """
    patiently(folder, lambda: folder.mkdir(parents=True, exist_ok=True))


def publish(path: Path, write: Callable[[Path], Any]) -> None:
    """Calls `write` with a temporary path and renames the result to `path`. Readers see the old
    file or the complete new one.

    Earlier published files reach the disk before this one. Waits for storage that is full or
    unreachable.
    """
    aside = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")

    def act() -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        put(path, aside, write)

    patiently(path, act)


def put(path: Path, aside: Path, write: Callable[[Path], Any]) -> None:
    """Calls `write` with the path `aside` and renames the result to `path`, without retries. If
    that fails, `aside` is removed.
    """
    try:
        write(aside)
        if aside.is_file():  # who writes a folder sees to the files in it
            sync(aside)
        aside.replace(path)
    except Exception:
        # What is there of it fills the storage for nothing.
        shutil.rmtree(aside, ignore_errors=True)
        with suppress(OSError):
            aside.unlink()
        raise
    with suppress(OSError):  # not every file system can
        sync(path.parent)


def sync(path: Path) -> None:
    """Waits until the content of a file, or the names in a folder, are on the disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def append(path: Path, lines: bytes, opened: Callable[[], None] = lambda: None) -> None:
    """Appends lines to an existing file, all or none. An incomplete last line, as a power cut may
    leave it, is removed first.

    Waits for storage that is full or unreachable. Only one process may append at a time. `opened`
    is called after the file has been opened and before anything is written; its errors are passed
    on.
    """
    end: int | None = None

    def act() -> None:
        nonlocal end
        with path.open("r+b", buffering=0) as file:
            opened()
            if (
                end is None
            ):  # what an attempt leaves that failed only half is not taken for a part of the file
                end = _end_of_lines(file)
            file.truncate(end)
            file.seek(end)
            try:
                _write_all(file, lines)
                os.fsync(file.fileno())
            except OSError:
                os.ftruncate(
                    file.fileno(), end
                )  # this very file, whatever stands in its place meanwhile
                raise

    patiently(path, act, must_exist=True)


def _write_all(file: Any, lines: bytes) -> None:
    left = memoryview(lines)
    while left:
        left = left[file.write(left) :]


def _end_of_lines(file: Any) -> int:
    """Where the last whole line ends, in bytes."""
    end = int(file.seek(0, os.SEEK_END))
    while end:
        start = max(0, end - 4096)
        file.seek(start)
        last_newline = file.read(end - start).rfind(LINE)
        if last_newline >= 0:
            return start + int(last_newline) + 1
        end = start
    return 0


class Lock(Enum):
    """The result of an attempt to lock a file."""

    OURS = "ours"
    TAKEN = "taken"
    """Another process has it."""
    UNKNOWN = "unknown"
    """The storage has no locks."""


@contextmanager
def held(path: Path) -> Iterator[Lock]:
    """Locks a file during the `with` block, and creates it if necessary, unless another process
    holds the lock.

    The system releases the lock when the process ends in any way. Therefore filelock must not fall
    back to a lock that is only a file. It reports a lock that is taken by Timeout, and storage
    without locks by OSError. Raises OSError if the storage is unreachable.
    """
    path.open("a").close()  # raises what has nothing to do with locks
    file_lock = FileLock(path, blocking=False, fallback_to_soft=False)
    try:
        file_lock.acquire()
        lock = Lock.OURS
    except Timeout:
        lock = Lock.TAKEN
    except OSError as error:
        if is_of_storage(error):
            raise
        lock = Lock.UNKNOWN
    try:
        yield lock
    finally:
        file_lock.release()
