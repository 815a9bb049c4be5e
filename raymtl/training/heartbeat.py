"""Tells the user what a stalled training waits for.

While a step takes long, each worker writes a file that says what it waits for into the folder of
its attempt. The driver reads these files and prints one sentence.
"""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from raymtl.step.workers import COMMUNICATION, Workers
from raymtl.storage import atomic, fence, strict_json
from raymtl.storage.fence import Attempt, Superseded

STILL_S = 30.0
"""Seconds after which a step counts as stalled."""
SILENT_S = 30.0
"""Seconds without any sign of life after which the driver says that no worker answers."""
BEAT_S = 10.0
"""Seconds between two signs of life of the first worker."""
TICK_S = 1.0
ALIVE = "alive"
STILL = "still-"
COMPUTES = "nothing, but computes"


class Heartbeat:
    """Reports what one worker waits for, if its step takes longer than `STILL_S`.

    The training loop calls `made` after each step and sets `wants_episodes`. A thread (`beating`)
    calls `look` and `beat`.
    """

    def __init__(self, attempt: Attempt, workers: Workers, step: int) -> None:
        self.attempt, self.workers = attempt, workers
        self.done = step
        self.since = time.monotonic()
        self.wants_episodes = False
        self.path = attempt.own / f"{STILL}{workers.rank}.json"
        self._told: dict[str, Any] = {}

    def made(self, step: int) -> None:
        """Called after the training has made a step."""
        self.done, self.since = step, time.monotonic()

    @property
    def waits_for(self) -> str:
        """What the worker waits for at this moment, as words of a message."""
        if atomic.AWAITED:
            return f"the storage at {atomic.AWAITED[-1]}"
        if COMMUNICATION.since is not None:
            return "the other workers"
        if self.wants_episodes:
            return "its episodes"
        return COMPUTES

    def look(self) -> None:
        """Writes a report if the step takes long, and removes it when the step has been made.

        Raises Superseded if there is a later attempt, and OSError if the storage is unreachable.
        """
        if time.monotonic() - self.since < STILL_S:
            if self._told:
                self.path.unlink(missing_ok=True)
            self._told = {}
            return
        word = {
            "worker": self.workers.rank,
            "workers": self.workers.size,
            "host": socket.gethostname(),
        }
        word |= {"step": self.done, "waits_for": self.waits_for}
        if word != self._told:
            self.attempt.publish(self.path, lambda aside: aside.write_text(strict_json.dumps(word)))
            self._told = word

    def beat(self, number: int) -> None:
        """Changes a file, so that the driver sees that the first worker is alive."""
        if self.workers.rank == 0:
            (self.attempt.own / ALIVE).write_text(str(number))


@contextmanager
def beating(heartbeat: Heartbeat) -> Iterator[None]:
    """Calls `look` and `beat` in a thread while the caller trains."""
    ended = threading.Event()

    def follow() -> None:
        ticks = 0
        while not ended.wait(TICK_S):
            ticks += 1
            try:
                with suppress(OSError):  # of storage that is away, nobody can be told by it
                    heartbeat.look()
                    if ticks % round(BEAT_S / TICK_S) == 0:
                        heartbeat.beat(ticks)
            except Superseded:
                return

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()


class Silence:
    """How long a training has given no sign of life, in seconds.

    The driver itself can be held up, as by a machine that is busy or asleep; the workers wait
    then too. So the time between two looks counts as `BEAT_S` at most, which leaves the workers
    time for several signs.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._looked = time.monotonic()

    def look(self, sign: bool) -> None:
        """Called at every look of the driver, with whether it saw a sign of life."""
        now = time.monotonic()
        self.seconds += min(now - self._looked, BEAT_S)
        self._looked = now
        if sign:
            self.seconds = 0.0


class StallMonitor:
    """Runs in the driver: reports each training that stalls, why it does, and when it continues.

    `say` prints a sentence. Nothing is reported twice.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self._signs: dict[Path, tuple[Any, ...]] = {}
        self._silences: dict[Path, Silence] = {}
        self._told: dict[Path, str] = {}
        self._slow: set[tuple[Path, str]] = set()

    def look(self, name: str, folder: Path) -> None:
        """Checks the training in a model folder, and reports a change.

        The driver calls this repeatedly. It may begin to do so before the training has started.
        """
        try:
            number = fence.newest(folder)
        except OSError:
            return
        attempt_folder = Attempt(folder, number).own
        words = _words(attempt_folder)
        signs = (number, _text(attempt_folder / ALIVE), _text(folder / "resumes.jsonl"))
        silence = self._silences.setdefault(folder, Silence())
        silence.look(bool(number == 0 or words or self._signs.get(folder) != signs))
        self._signs[folder] = signs
        reason = _reason(words)
        if not reason and silence.seconds >= SILENT_S:
            reason = (
                "no worker answers. Ray notices after about a minute that a machine is lost, and "
                "goes on where there is room"
            )
        if COMPUTES in reason and (folder, reason) in self._slow:
            reason = ""  # every step may be slow; that is said once
        if reason == self._told.get(folder, ""):
            return
        if reason:
            self.say(f"{name} stands still{_since(words)}: {reason}.")
            self._told[folder] = reason
            self._slow.add((folder, reason))
        else:
            self.say(f"{name} goes on.")
            del self._told[folder]


def _words(attempt_folder: Path) -> list[dict[str, Any]]:
    """The reports that workers wrote into an attempt's folder."""
    texts = [_text(path) for path in sorted(attempt_folder.glob(f"{STILL}*.json"))]
    return [json.loads(text) for text in texts if text]


def _text(path: Path) -> str:
    """The content of a file; empty if it does not exist or cannot be reached."""
    try:
        return path.read_text()
    except OSError:
        return ""


def _since(words: list[dict[str, Any]]) -> str:
    if words:
        return f" after step {words[0]['step']}"
    return ""


def _reason(words: list[dict[str, Any]]) -> str:
    """Which workers wait for what, in words; empty if no worker wrote a report."""
    if not words:
        return ""
    hosts: dict[str, list[str]] = {}
    for word in words:
        hosts.setdefault(word["waits_for"], []).append(f"worker {word['worker']} on {word['host']}")
    waiting = [f"{', '.join(who)} waits for {what}" for what, who in hosts.items()]
    silent = words[0]["workers"] - len(words)
    if silent:
        waiting.append(f"{silent} of {words[0]['workers']} workers say nothing")
    return "; ".join(waiting)
