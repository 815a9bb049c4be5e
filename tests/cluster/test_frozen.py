"""A host that freezes for longer than Ray waits, and wakes: it writes nothing into what took its place."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from raymtl.storage import formats
from raymtl.training import checkpoint
from tests.cluster.hosts import ADDRESS, HEAD, NUM_HOSTS, Cluster, Run, until
from tests.cluster.test_faults import TRIAL, WORKER, assert_same_training, outcome, resumed

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

FROZEN_S = 90.0
AFTER_S = 20.0
"""How long the host is watched once it is awake: its processes live some seconds until its Ray ends them."""
ENDLESS = ("train.steps=100000", "train.eval_every=100")
"""Steps enough that the new attempt is at work when the host wakes; the test ends the run."""
SHORT = ("train.steps=120", "train.eval_every=20")
BEGUN = 40
"""The step from which on a host is frozen."""


class Seen:
    """What a reader of model folders finds, looked up again and again; it never gets less."""

    def __init__(self, folders: Callable[[], list[Path]]) -> None:
        self.folders = folders
        self.newest: dict[Path, int] = {}
        self.rows: dict[Path, int] = {}

    def look(self) -> None:
        for folder in self.folders():
            newest, rows = (
                checkpoint.newest_step(folder),
                len(formats.read_rows(folder / "history.parquet")),
            )
            assert newest >= self.newest.get(folder, 0), (
                f"{folder}: the newest checkpoint became an older one"
            )
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


def come_back(cluster: Cluster, host: int) -> None:
    """Boots the host again: Ray has given it up, and does not start one a second time that it lost while starting it."""
    cluster.hosts("kill", str(host))
    cluster.hosts("start", str(host))
    cluster.hosts.sh(
        host, f". ~/raymtl.env && ray start --address={ADDRESS.format(10 + HEAD)}:6379", check=False
    )
    cluster.wait_for_nodes(NUM_HOSTS)


def frozen_while(
    cluster: Cluster, run: Run, pattern: str, seen: Seen, goes_on: Callable[[], bool]
) -> int:
    """Freezes a host of a run for `FROZEN_S`, and until the run goes on without it; then watches it awake."""
    host = freeze(cluster, pattern)
    try:
        seen.watch(FROZEN_S)
        seen.watch(600, goes_on)
        assert goes_on(), run.told
    finally:
        cluster.hosts("thaw", str(host))
    seen.watch(AFTER_S)
    return host


def end(cluster: Cluster, run: Run, command: str) -> None:
    """Ends the driver, as a user would, and waits until what it started has ended."""
    assert run.process.poll() is None, run.told
    assert cluster.kill(HEAD, f"[r]aymtl {command}")
    run.process.wait(60)
    until(
        lambda: not cluster.hosts_of(WORKER) and not cluster.hosts_of(TRIAL),
        "the end of the workers",
        120,
    )


def test_frozen_hosts_change_no_ended_training(cluster: Cluster) -> None:
    """When they wake."""
    calm = cluster.begin("train", "calm", *SHORT)
    calm.finish()
    run = cluster.begin("train", "frozen-ended", *SHORT)
    run.reach(BEGUN)
    seen = Seen(lambda: [run.folder / "best"])
    host = frozen_while(cluster, run, WORKER, seen, lambda: run.process.poll() is not None)
    run.finish()
    assert_same_training(run, calm)
    come_back(cluster, host)


def test_frozen_hosts_change_no_running_training(cluster: Cluster) -> None:
    """When they wake."""
    run = cluster.begin("train", "frozen", *ENDLESS)
    run.reach(BEGUN)
    seen = Seen(lambda: [run.folder / "best"])
    at = run.step()
    host = frozen_while(
        cluster, run, WORKER, seen, lambda: bool(resumed(run)) and run.step() > at + 5
    )
    assert run.step() > at + 5
    assert len(resumed(run)) == 1
    end(cluster, run, "train")
    come_back(cluster, host)


def test_frozen_hosts_change_no_running_search(cluster: Cluster) -> None:
    """When they wake."""
    run = cluster.begin("tune", "frozen-search", "tune.trials=3", *ENDLESS)
    until(lambda: len(trials(run)) == 3 and min(steps(run)) >= BEGUN, "all trials", 300)
    at = steps(run)
    seen = Seen(lambda: trials(run))
    host = frozen_while(
        cluster,
        run,
        TRIAL,
        seen,
        lambda: all(now > then + 5 for now, then in zip(steps(run), at, strict=True)),
    )
    end(cluster, run, "tune")
    come_back(cluster, host)


def test_frozen_hosts_change_no_ended_search(cluster: Cluster) -> None:
    """When they wake."""
    sets = (
        "tune.trials=3",
        "evaluate.test_episodes=4",
        "train.workers=1",
        "train.steps=1500",
        "train.eval_every=250",
    )
    calm = cluster.begin("tune", "calm-search", *sets)
    calm.finish(900)
    run = cluster.begin("tune", "frozen-search-ended", *sets)
    until(lambda: len(trials(run)) == 3 and min(steps(run)) >= BEGUN, "all trials", 300)
    seen = Seen(lambda: trials(run))
    host = frozen_while(cluster, run, TRIAL, seen, lambda: run.process.poll() is not None)
    run.finish()
    assert outcome(run) == outcome(calm)
    assert steps(run) == [1500] * 3
    come_back(cluster, host)


def steps(run: Run) -> list[int]:
    """The newest steps of the trials."""
    return [checkpoint.newest_step(each) for each in trials(run)]


def trials(run: Run) -> list[Path]:
    return sorted((run.folder / "trials").glob("[0-9]*"))
