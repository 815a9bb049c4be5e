"""One writer: of all attempts at a training, or at a run, the last alone writes.

An attempt may be given up while it still exists: its host froze, or was cut off, and another
attempt took its place. When the host wakes, the old attempt goes on in the middle of whatever it
was doing. The fence makes its writes fail.

Every attempt makes a folder `.attempt-N` in the folder that it writes, N one more than the newest
there. The name is its token; all workers of the attempt share it. Making a folder is atomic, so no
two attempts have one token and no lock is needed; a host that freezes while it has a lock would
only stop those after it.

1. A new attempt moves the folders of all attempts before it into its own and removes them. Only
  then does it read.
2. What an attempt publishes, it writes in its own folder and renames from there to its place. What
  it removes, it renames into its own folder first. Once a later attempt has moved that folder away,
  each such rename fails: the system looks the name up in the same step. So there is no moment
  between a check and a write. Nobody makes the folder a second time; what is written aside is
  written without making parents.
3. A file that lines are added to (the study's journal) is given a new inode by each attempt. An
  attempt opens it, then checks that it is the last, then writes: what it has open is no longer the
  file if it was the last no more.

So once an attempt has claimed a folder, nothing in it changes but by that attempt. This holds where
a rename is atomic, as on every local and parallel file system. On NFS a client may know a folder by
a handle still that another one moved. The server has no folder behind that handle once it is
removed, for which the new attempt waits up to `GONE_S`.

What remains: files of TensorBoard, of which each attempt has its own; scores, which are the same
whoever computes them from the same model; and an attempt that froze before it made its folder. That
one is the last when it wakes. The one that was at work ends as `Superseded`, and goes on from its
checkpoints when it is tried again.
"""

import os
import shutil
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from raymtl.storage import atomic

PREFIX = ".attempt-"
GONE_S = 10.0
"""How long a new attempt waits until the folders of those before it are removed."""
LOOK_S = 0.05
FRESH_S = 1.0
"""How long the answer that an attempt is the last one is good for where nothing is written."""


class Superseded(RuntimeError):
    """Another attempt took the place of this one, which writes nothing more."""


class Attempt:
    """One attempt at what is written in a folder. Workers of one attempt share its number."""

    def __init__(self, folder: Path, number: int) -> None:
        self.folder, self.number = folder, number
        self.own = folder / f"{PREFIX}{number:04d}"
        """What it writes stands here until it is whole."""
        self._checked = time.monotonic()

    def check(self) -> None:
        """Raises Superseded where there is a later attempt, and FileNotFoundError where this one is
        out of sight.
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
        """Raises Superseded as `check`, which it calls once in `FRESH_S` and so at once after a
        freeze.

        Storage that is away is for those who write to tell.
        """
        now = time.monotonic()
        if now - self._checked >= FRESH_S:
            with suppress(OSError):
                self.check()
            self._checked = now

    def publish(self, path: Path, write: Callable[[Path], Any]) -> None:
        """As `storage.publish`. Raises Superseded, and leaves `path` as it is, where this attempt
        is not the last.
        """
        aside = self._aside(path)

        def act() -> None:
            if path.parent != self.own:
                path.parent.mkdir(exist_ok=True)
            atomic.put(path, aside, write)

        self._as_the_last(path, act)

    def remove(self, path: Path) -> None:
        """Removes a file or folder, if there is one. Raises Superseded, as `publish`, and leaves
        it.
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
        """As `storage.append`, to a file that this attempt has called `renew` for. Raises
        Superseded as `publish`.
        """
        atomic.append(path, lines, opened=self.check)

    def renew(self, path: Path) -> None:
        """Puts a copy of a file, if it is there, in its place, so that earlier attempts have
        another one open.

        What one of those adds until it is there is copied too; what it adds later stood in its
        place at no time.
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
                self.publish(path, lambda aside, content=content: aside.write_bytes(content))  # type: ignore[misc]
                copied = len(content)

    def _aside(self, path: Path) -> Path:
        return self.own / f"{path.name}.{socket.gethostname()}.{os.getpid()}.{time.monotonic_ns()}"

    def _as_the_last(self, path: Path, act: Callable[[], None]) -> None:
        """Calls `act`, again while the storage is away. Whatever it fails of, raises Superseded if
        this is the case.
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
        """Moves the folders of earlier attempts away, and waits until they are removed."""
        for number in _numbers(self.folder):
            earlier = self.folder / f"{PREFIX}{number:04d}"
            if number < self.number:
                self.remove(earlier)
        self.check()


def claim(folder: Path) -> Attempt:
    """A new attempt, the last from here on. What those before it have published is what stands in
    the folder now.

    Raises Superseded where another one is made at the same time and comes later.
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
    """The number of the last attempt at a folder, 0 where there was none."""
    return max(_numbers(folder), default=0)


def _numbers(folder: Path) -> list[int]:
    names = [name.removeprefix(PREFIX) for name in os.listdir(folder) if name.startswith(PREFIX)]
    return [int(name) for name in names if name.isdigit()]


def _removed(path: Path) -> None:
    """Removes what is at a path in an attempt's own folder. What cannot be removed goes with that
    folder.
    """
    with suppress(OSError):
        path.unlink()
    until = time.monotonic() + GONE_S
    while True:
        shutil.rmtree(path, ignore_errors=True)
        if not path.exists() or time.monotonic() >= until:
            return
        time.sleep(LOOK_S)
