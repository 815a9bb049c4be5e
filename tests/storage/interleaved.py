"""A small explorer: runs several writers, each a function, in all orders of their steps on a real file system.

A step ends where a writer is about to change what others see, or to look at it. Threads take turns, so one step runs at
a time. Orders that lead to the same files, with every writer before the same step after steps that came out alike, are
gone through once. Writers that are one function may change places in such orders.
"""

import os
import shutil
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

STEPS = ("mkdir", "rename", "replace", "listdir")
WAIT_S = 300.0


class _Stopped(BaseException):
    """Ends a writer that is not needed any more."""


class _Writer(threading.Thread):
    """A thread that does one step of a writer whenever it is told to."""

    def __init__(self, work: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self.work = work
        # Locks, each of which one thread takes and another one gives: faster than semaphores.
        self.go, self.waits = threading.Lock(), threading.Lock()
        self.go.acquire()
        self.waits.acquire()
        self.seen: list[str] = []
        self.error: BaseException | None = None
        self.done = self.stopped = False

    def run(self) -> None:
        try:
            self.pause("begin")
            self.work()
        except _Stopped:
            pass
        except Exception as error:
            self.error = error
        self.done = True
        self.waits.release()

    def pause(self, name: str) -> None:
        self.seen.append(name)
        self.waits.release()
        self.go.acquire()
        if self.stopped:
            raise _Stopped

    def step(self) -> None:
        self.go.release()
        assert self.waits.acquire(timeout=WAIT_S)

    def stop(self) -> None:
        self.stopped = True
        self.go.release()
        self.join(WAIT_S)


def _watched(name: str, known: Callable[..., Any]) -> Callable[..., Any]:
    """A function of the system by which a step of a writer begins."""

    def call(*args: Any, **options: Any) -> Any:
        writer = threading.current_thread()
        if not isinstance(writer, _Writer):
            return known(*args, **options)
        writer.pause(f"{name} {args}")
        try:
            result = known(*args, **options)
        except OSError as error:
            writer.seen.append(str(error.errno))
            raise
        writer.seen.append(str(sorted(result) if isinstance(result, list) else result))
        return result

    return call


def step_before(known: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, before which a step begins."""

    def call(*args: Any, **options: Any) -> Any:
        writer = threading.current_thread()
        if isinstance(writer, _Writer):
            writer.pause(known.__name__)
        return known(*args, **options)

    return call


def _rmtree(known: Callable[..., Any]) -> Callable[..., Any]:
    """In two steps, since what is half removed can be seen."""

    def call(path: Any, *args: Any, **options: Any) -> None:
        writer = threading.current_thread()
        if isinstance(writer, _Writer):
            writer.pause(f"rmtree {path}")
            for manifest in Path(path).rglob("manifest.json"):
                manifest.unlink()
            writer.pause("rmtree the rest")
        known(path, *args, **options)

    return call


class Start(NamedTuple):
    """How a run begins."""

    order: list[int]
    num_seen: int
    """So many of its first steps were looked at in an earlier run."""
    seen: dict[str, Any]
    """What the looks at these came to."""


def explore(
    folder: Path,
    prepare: Callable[[Path], object],
    writers: Sequence[Callable[[Path], object]],
    look: Callable[[Path, dict[str, Any]], object],
    ended: Callable[[Path, list[BaseException | None]], object],
    orders: Callable[[int], Sequence[int]] | None = None,
) -> int:
    """Runs the writers in all orders, each time in a copy of a prepared folder; how many different states there were.

    `look` is called after every step, with a dict that lasts for one run; `ended` after the last step, with what each
    writer raised. What steps in an order lead to is looked at once: a run that begins as an earlier one gets a copy of
    the dict as that had it. With `orders`, the order of run i is what it returns: which writer is preferred at each
    step, until it returns an empty one.
    """
    patches = [mock.patch.object(os, name, _watched(name, getattr(os, name))) for name in STEPS]
    patches.append(mock.patch.object(shutil, "rmtree", _rmtree(shutil.rmtree)))
    remove = shutil.rmtree
    for patch in patches:
        patch.start()
    prepared = folder.with_name(f"{folder.name} prepared")
    prepared.mkdir()
    prepare(prepared)
    try:
        known: set[int] = set()
        open_ends: list[Start] = [Start([], 0, {})]
        number = 0
        while open_ends:
            start = open_ends.pop()
            if orders is not None:
                start = Start(list(orders(number)), 0, {})
                open_ends = [start] if start.order else []
            remove(folder, ignore_errors=True)
            shutil.copytree(prepared, folder)
            _one_run(
                folder, writers, look, ended, start, known, open_ends if orders is None else None
            )
            number += 1
        return len(known)
    finally:
        for patch in patches:
            patch.stop()


def _one_run(
    folder: Path,
    works: Sequence[Callable[[Path], object]],
    look: Callable[[Path, dict[str, Any]], object],
    ended: Callable[[Path, list[BaseException | None]], object],
    start: Start,
    known: set[int],
    open_ends: list[Start] | None,
) -> None:
    """Goes the given order, then on until the end or a known state; notes the orders that part from it on its way."""
    threads = [_Writer(partial(work, folder)) for work in works]
    for thread in threads:
        thread.start()
        assert thread.waits.acquire(timeout=WAIT_S)
    order, num_seen, seen = start
    gone: list[int] = []
    try:
        while True:
            running = [i for i, thread in enumerate(threads) if not thread.done]
            if not running:
                ended(folder, [thread.error for thread in threads])
                return
            at = len(gone)
            preferred = order[at] if at < len(order) else running[0]
            chosen = preferred if preferred in running else running[0]
            if open_ends is not None and at >= len(order):
                others = [other for other in running if other != chosen]
                open_ends += [Start([*gone, other], at, dict(seen)) for other in others]
            threads[chosen].step()
            gone.append(chosen)
            if at >= num_seen:
                try:
                    look(folder, seen)
                except AssertionError as error:
                    error.add_note(f"in the order {gone}")
                    raise
            if at >= len(order) - 1:
                state = _state(folder, works, threads)
                if state in known and open_ends is not None:
                    return
                known.add(state)
    finally:
        for thread in threads:
            if not thread.done:
                thread.stop()


def _state(
    folder: Path, works: Sequence[Callable[[Path], object]], threads: Sequence[_Writer]
) -> int:
    """What goes on from here depends on the files, and on each writer's function and what it has seen."""
    files = [
        (str(path), path.read_bytes() if path.is_file() else b"")
        for path in sorted(folder.rglob("*"))
    ]
    writers = [
        hash((work, tuple(thread.seen), thread.done))
        for work, thread in zip(works, threads, strict=True)
    ]
    return hash((tuple(files), tuple(sorted(writers))))
