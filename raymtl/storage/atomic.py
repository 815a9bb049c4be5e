"""Writing to storage that may be full or away for a while: files whole or not at all, lines whole
or not at all.
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
    """What `act` returns, which reads or writes `path`.

    Where the storage is full or away, it is called again until `PATIENCE_S` have passed; then what
    the storage does is raised. `must_exist`: the path has been written before, so a path
    that does not exist means that the storage is away.
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
    """Whether it may be better another time, whatever a library made of what the system said."""
    if isinstance(error, OSError) and error.errno:
        return error.errno in AWAY
    if any(
        f"os error {code}" in str(error) for code in AWAY
    ):  # safetensors, which writes by itself
        return True
    return error.__context__ is not None and is_of_storage(error.__context__)


def reach(folder: Path) -> None:
    """Returns when the folder is there, and makes it if it never was: what is in it can be read, or
    is not there.
    """
    patiently(folder, lambda: folder.mkdir(parents=True, exist_ok=True))


def publish(path: Path, write: Callable[[Path], Any]) -> None:
    """Calls `write` with a path aside, then renames that to `path`: readers see the old file or the
    whole new one.

    What was published before is on the disk before this is. Waits for storage that is full or away.
    """
    aside = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")

    def act() -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        put(path, aside, write)

    patiently(path, act)


def put(path: Path, aside: Path, write: Callable[[Path], Any]) -> None:
    """Calls `write` with `aside`, then renames that to `path`, once; what is left of a failure is
    removed.
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
    """Returns when the disk has what is in a file, or which names are in a folder."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def append(path: Path, lines: bytes, opened: Callable[[], None] = lambda: None) -> None:
    """Adds lines to a file that is there, all or none. Half a line, as a power cut may leave it, is
    cut off first.

    Waits for storage that is full or away. Only one process may do so at a time. `opened` is called
    when the file is open and nothing is written; what it raises is raised.
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
        found = file.read(end - start).rfind(LINE)
        if found >= 0:
            return start + int(found) + 1
        end = start
    return 0


class Lock(Enum):
    """What became of the wish to lock a file."""

    OURS = "ours"
    TAKEN = "taken"
    """Another process has it."""
    UNKNOWN = "unknown"
    """The storage has no locks."""


@contextmanager
def held(path: Path) -> Iterator[Lock]:
    """Locks a file, made if there is none, while the caller goes on, unless another process has it
    locked.

    The system takes the lock back when the process ends, however it does. That is why filelock may
    not fall back to a lock that is only a file. filelock itself tells a lock that is taken
    (Timeout) from storage without locks (OSError). Raises OSError where the storage is away.
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
