"""A training that stands still says so, and what it waits for."""

import errno
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raymtl.step.workers import COMMUNICATION, Workers
from raymtl.storage import atomic, formats
from raymtl.storage.fence import claim
from raymtl.training import heartbeat
from raymtl.training.context import TrainContext
from raymtl.training.heartbeat import Heartbeat, StallMonitor
from raymtl.training.loop import local_batches, train_loop
from tests.conftest import experiment


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that the test sets."""
    at = [0.0]
    monkeypatch.setattr("raymtl.training.heartbeat.time.monotonic", lambda: at[0])
    return at


def test_slow_workers_tell_what_they_await(
    tmp_path: Path, now: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that do not are counted."""
    told: list[str] = []
    stall_monitor = StallMonitor(told.append)
    attempt = claim(tmp_path)
    first, second = (Heartbeat(attempt, Workers(rank, 3), 7) for rank in (0, 1))

    def look() -> list[str]:
        first.look()
        second.look()
        stall_monitor.look("best", tmp_path)
        said, told[:] = list(told), []
        return said

    assert look() == []
    first.made(8)
    second.made(8)
    now[0] += 29
    assert look() == []
    now[0] += 2
    second.wants_episodes = True
    monkeypatch.setattr(COMMUNICATION, "since", 1.0)
    monkeypatch.setattr("raymtl.training.heartbeat.socket.gethostname", lambda: "a")
    (said,) = look()
    assert said == (
        "best stands still after step 8: worker 0 on a, worker 1 on a waits for the other workers; "
        "1 of 3 workers say nothing."
    )
    assert look() == []
    monkeypatch.setattr(COMMUNICATION, "since", None)
    (said,) = look()
    assert (
        "worker 0 on a waits for nothing, but computes; worker 1 on a waits for its episodes"
        in said
    )
    first.made(9)
    second.made(9)
    assert look() == ["best goes on."]


def test_silent_workers_are_named(tmp_path: Path, now: list[float]) -> None:
    """And it is said when another attempt goes on."""
    told: list[str] = []
    stall_monitor = StallMonitor(told.append)
    stall_monitor.look("best", tmp_path / "not begun")
    attempt = claim(tmp_path)
    one = Heartbeat(attempt, Workers(), 0)
    for number in range(8):
        now[0] += 10
        one.made(number)
        one.beat(number)
        stall_monitor.look("best", tmp_path)
    now[0] += 29
    stall_monitor.look("best", tmp_path)
    assert told == []
    for _ in range(3):
        now[0] += 10
        stall_monitor.look("best", tmp_path)
    assert len(told) == 1 and told[0].startswith(
        "best stands still: no worker answers. Ray notices"
    )
    claim(tmp_path)
    stall_monitor.look("best", tmp_path)
    assert told[1:] == ["best goes on."]


def test_a_driver_that_was_held_up_blames_no_worker(tmp_path: Path, now: list[float]) -> None:
    """The workers may have been held up with it, and get time for a sign of life."""
    told: list[str] = []
    stall_monitor = StallMonitor(told.append)
    one = Heartbeat(claim(tmp_path), Workers(), 0)
    for number in range(4):
        stall_monitor.look("best", tmp_path)
        now[0] += 1000
        stall_monitor.look("best", tmp_path)
        now[0] += 10
        one.beat(number)
    assert told == []


def test_lost_storage_is_named_as_awaited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = Heartbeat(claim(tmp_path), Workers(), 0)
    waited: list[str] = []

    def act() -> None:
        if not waited:
            raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(
        "raymtl.storage.atomic.time.sleep", lambda seconds: waited.append(one.waits_for)
    )
    atomic.patiently(tmp_path / "file", act)
    assert waited == [f"the storage at {tmp_path / 'file'}"]
    assert one.waits_for == heartbeat.COMPUTES


def test_missing_episodes_are_named_as_awaited(
    arrays: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "STILL_S", 0.2)
    monkeypatch.setattr(heartbeat, "SILENT_S", math.inf)
    monkeypatch.setattr(heartbeat, "TICK_S", 0.02)
    chosen = experiment(train__steps=3)
    told: list[str] = []
    stall_monitor = StallMonitor(told.append)

    def awaited() -> bool:
        return any("after step 1" in text and "waits for its episodes" in text for text in told)

    def slow(first_step: int) -> Iterator[Any]:
        for number, batch in enumerate(local_batches(chosen, arrays)(first_step)):
            if number == 1:
                until = time.monotonic() + 120
                while not awaited() and time.monotonic() < until:
                    stall_monitor.look("best", tmp_path)
                    time.sleep(0.02)
            yield batch

    train_loop(chosen, arrays, slow, TrainContext(lambda _: None, lambda _: None), tmp_path)
    assert awaited(), told
    assert len(formats.read_rows(tmp_path / "history.parquet")) == 3
