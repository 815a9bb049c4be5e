"""A fence for writers: of all attempts at a training, or at a run, only the latest can write.

The problem: a host freezes or loses its network, and another attempt takes over the training. Later
the host wakes up, and the old attempt continues in the middle of a write. The fence makes that
write fail.

Every attempt creates a folder `.attempt-N` in the folder that it writes to. N, its fencing token,
is one more than the largest number there, and all workers of the attempt share it. Creating a
folder is atomic, so two attempts never have the same token. No lock is needed; a host that freezes
while it holds a lock would block all later attempts.

1. Claiming. A new attempt moves the folders of all earlier attempts into its own and removes them.
  It reads nothing before that.
2. Publishing and removing. An attempt writes each file in its own folder and renames it to its
  final place. To remove a file, it first renames it into its own folder. After a later attempt has
  moved the folder away, such a rename fails, because the system looks up the path during the
  rename. So no other attempt can come between a check and a write. The folder is never created a
  second time, and writing in it does not create missing parents.
3. Appending. Each attempt replaces a file that grows by lines (the study's journal) by a copy,
  which has another inode. An attempt opens the file, checks that it is the latest attempt, and
  writes. If it was superseded in between, it has the old inode open, which nobody reads.

So after an attempt has claimed a folder, only this attempt changes anything in it. This requires
atomic renames, which local and parallel file systems have. On NFS a client may still reach a moved
folder by its handle, until the server has removed the folder. A new attempt waits for that, at most
`GONE_S`.

Not fenced are files that cannot conflict: TensorBoard's, of which each attempt has its own, and
scores, which are equal whoever computes them from the same model.

One case remains: an attempt that freezes before it has created its folder is the latest attempt
when it wakes up. The attempt that was running then ends as `Superseded`, and continues from its
checkpoints when it is retried.
"""

import os
import shutil
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from raymtl.storage import atomic

PREFIX = ".attempt-"
GONE_S = 10.0
"""Seconds that a new attempt waits for the removal of earlier attempts' folders."""
LOOK_S = 0.05
FRESH_S = 1.0
"""Seconds between two checks of an attempt that does not write."""


class Superseded(RuntimeError):
    """Raised in an attempt that a later attempt has replaced; it must not write any more."""


class Attempt:
    """One attempt at writing a folder, such as that of a run or a model.

    `number` is its fencing token, which all workers of the attempt share.
    """

    def __init__(self, folder: Path, number: int) -> None:
        self.folder, self.number = folder, number
        self.own = folder / f"{PREFIX}{number:04d}"
        """The attempt's own folder, in which it prepares what it publishes."""
        self._checked = time.monotonic()

    def check(self) -> None:
        """Checks that this attempt is the latest one.

        Raises Superseded if there is a later attempt, and FileNotFoundError if the folder of this
        attempt cannot be seen.
        """
        last = newest(self.folder)
        if last > self.number:
            raise Superseded(
                f"{self.folder}: attempt {last} took the place of attempt {self.number}, which "
                "writes nothing more."
            )
        if last < self.number:
            raise FileNotFoundError(
                f"{self.own} is not there: the storage is away, or somebody removed it"
            )

    def check_now_and_then(self) -> None:
        """Calls `check` at most once in `FRESH_S`, and therefore at once after a freeze.

        Raises Superseded. Unreachable storage is ignored here, because the next write reports it.
        """
        now = time.monotonic()
        if now - self._checked >= FRESH_S:
            with suppress(OSError):
                self.check()
            self._checked = now

    def publish(self, path: Path, write: Callable[[Path], Any]) -> None:
        """Calls `write` with a path in the attempt's own folder, and renames the result to `path`.

        Raises Superseded, and does not change `path`, if there is a later attempt.
        """
        aside = self._aside(path)

        def act() -> None:
            if path.parent != self.own:
                path.parent.mkdir(exist_ok=True)
            atomic.put(path, aside, write)

        self._as_the_last(path, act)

    def remove(self, path: Path) -> None:
        """Removes a file or folder, if it exists.

        Raises Superseded, and does not remove it, if there is a later attempt.
        """
        aside = self._aside(path)

        def act() -> None:
            try:
                path.rename(aside)
            except FileNotFoundError:
                if path.exists():
                    raise  # so it is `aside` that has no folder

        self._as_the_last(path, act)
        _removed(aside)

    def append(self, path: Path, lines: bytes) -> None:
        """Appends complete lines to a file for which this attempt has called `renew`.

        Raises Superseded if there is a later attempt.
        """
        atomic.append(path, lines, opened=self.check)

    def renew(self, path: Path) -> None:
        """Replaces a file, if it exists, by a copy. Earlier attempts then have the old file open.

        Lines that an earlier attempt appends before the replacement are copied too. Lines that it
        appends later go to the old file and are never read.
        """
        try:
            before = path.open("rb")
        except FileNotFoundError:
            return
        with before:
            copied = -1
            while copied < os.fstat(before.fileno()).st_size:
                before.seek(0)
                content = before.read()
                self.publish(path, partial(Path.write_bytes, data=content))
                copied = len(content)

    def _aside(self, path: Path) -> Path:
        return self.own / f"{path.name}.{socket.gethostname()}.{os.getpid()}.{time.monotonic_ns()}"

    def _as_the_last(self, path: Path, act: Callable[[], None]) -> None:
        """Calls `act` as the latest attempt, and retries while the storage is unreachable.

        If `act` fails and there is a later attempt, raises Superseded instead of the failure.
        """

        def once() -> None:
            self.check()
            try:
                act()
                return
            except Exception as error:
                failure = error
            # here and not in the handler, whose error would be the context of what this raises
            self.check()
            raise failure

        atomic.patiently(path, once, must_exist=True)

    def _take_over(self) -> None:
        """Moves away the folders of earlier attempts, and waits until they are removed."""
        for number in _numbers(self.folder):
            earlier = self.folder / f"{PREFIX}{number:04d}"
            if number < self.number:
                self.remove(earlier)
        self.check()


def claim(folder: Path) -> Attempt:
    """Starts a new attempt at a folder. From now on no earlier attempt can change the folder.

    Raises Superseded if another attempt starts at the same time and gets a higher number.
    """
    atomic.reach(folder)
    while True:
        attempt = Attempt(folder, newest(folder) + 1)
        try:
            atomic.patiently(attempt.own, attempt.own.mkdir)
        except FileExistsError:
            continue  # another one has that number
        attempt._take_over()
        return attempt


def newest(folder: Path) -> int:
    """The number of the latest attempt at a folder, or 0 if there was none."""
    return max(_numbers(folder), default=0)


def _numbers(folder: Path) -> list[int]:
    names = [name.removeprefix(PREFIX) for name in os.listdir(folder) if name.startswith(PREFIX)]
    return [int(name) for name in names if name.isdigit()]


def _removed(path: Path) -> None:
    """Removes a path in an attempt's own folder, within `GONE_S`.

    If that fails, the path will be removed together with the attempt's folder.
    """
    with suppress(OSError):
        path.unlink()
    until = time.monotonic() + GONE_S
    while True:
        shutil.rmtree(path, ignore_errors=True)
        if not path.exists() or time.monotonic() >= until:
            return
        time.sleep(LOOK_S)
