"""A host that freezes for longer than Ray waits, and wakes: it writes nothing into what took its place."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from raymtl import checkpoint, runs
from tests.cluster.hosts import HEAD, Cluster, Run, until
from tests.cluster.test_faults import TRIAL, WORKER, assert_same_training, outcome, resumed, searched, straight

__all__ = ["searched", "straight"]
pytestmark = [pytest.mark.cluster, pytest.mark.slow]

FROZEN_S = 90.0
AFTER_S = 20.0
"""How long the host is watched once it is awake: its processes live some seconds until its Ray ends them."""
LONG = ("train.steps=6000", "train.eval_every=500", "train.checkpoint_share=0.05")
"""Steps enough that the new attempt is at work when the host wakes."""


class Seen:
    """What a reader of model folders finds, looked up again and again; it never gets less."""

    def __init__(self, folders: Callable[[], list[Path]]) -> None:
        self.folders = folders
        self.newest: dict[Path, int] = {}
        self.rows: dict[Path, int] = {}

    def look(self) -> None:
        for folder in self.folders():
            newest, rows = checkpoint.newest_step(folder), len(runs.read_rows(folder / "history.parquet"))
            assert newest >= self.newest.get(folder, 0), f"{folder}: the newest checkpoint became an older one"
            assert rows >= self.rows.get(folder, 0), f"{folder}: the history shrank"
            self.newest[folder], self.rows[folder] = newest, rows

    def watch(self, seconds: float, ended: Callable[[], bool] = lambda: False) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and not ended():
            self.look()
            time.sleep(0.1)


def freeze(cluster: Cluster, pattern: str) -> int:
    """Freezes a host other than the head on which there is such a process."""
    host = next(host for host in reversed(cluster.hosts_of(pattern)) if host != HEAD)
    cluster.hosts("freeze", str(host))
    return host


def thaw(cluster: Cluster, host: int) -> None:
    cluster.hosts("thaw", str(host))


def come_back(cluster: Cluster, host: int) -> None:
    """Boots the host again: Ray has given it up, and its own Ray has ended for that."""
    cluster.hosts("kill", str(host))
    cluster.hosts("start", str(host))
    cluster.wait_for_nodes(3)


@pytest.mark.parametrize("ended", [False, True], ids=["the new attempt runs", "the new attempt has ended"])
def test_a_frozen_host_changes_no_training_when_it_wakes(ended: bool, cluster: Cluster) -> None:
    sets = LONG if not ended else ("train.steps=1500", "train.eval_every=500", "train.checkpoint_share=0.05")
    calm = cluster.begin("train", f"calm-{ended}", *sets)
    calm.finish(600)
    run = cluster.begin("train", f"frozen-{ended}", *sets)
    run.reach(300)
    seen = Seen(lambda: [run.folder / "best"])
    host = freeze(cluster, WORKER)
    try:
        seen.watch(FROZEN_S)
        if ended:
            seen.watch(400, lambda: run.process.poll() is not None)
        else:
            until(lambda: bool(resumed(run)), "the new attempt", 60)
            assert run.process.poll() is None, run.told
    finally:
        thaw(cluster, host)
    seen.watch(AFTER_S)
    seen.watch(600, lambda: run.process.poll() is not None)
    run.finish()
    seen.look()
    assert_same_training(run, calm)
    assert len(resumed(run)) >= 1
    come_back(cluster, host)


@pytest.mark.parametrize("ended", [False, True], ids=["the new attempt runs", "the new attempt has ended"])
def test_a_frozen_host_changes_no_search_when_it_wakes(ended: bool, cluster: Cluster) -> None:
    sets = ("tune.trials=4", *(LONG if not ended else ("train.steps=1000", "train.checkpoint_share=0.05")))
    run = cluster.begin("tune", f"search-{ended}", *sets)
    until(lambda: min((checkpoint.newest_step(each) for each in trials(run)), default=0) >= 100, "all trials", 240)
    seen = Seen(lambda: trials(run))
    host = freeze(cluster, TRIAL)
    try:
        seen.watch(FROZEN_S)
        if ended:
            seen.watch(400, lambda: run.process.poll() is not None)
    finally:
        thaw(cluster, host)
    seen.watch(AFTER_S)
    seen.watch(900, lambda: run.process.poll() is not None)
    run.finish()
    seen.look()
    assert [row[1] for row in outcome(run)] == ["complete"] * 4
    assert all(checkpoint.newest_step(each) == outcome(run)[0][2] for each in trials(run))
    come_back(cluster, host)


def trials(run: Run) -> list[Path]:
    return sorted((run.folder / "trials").glob("[0-9]*"))
