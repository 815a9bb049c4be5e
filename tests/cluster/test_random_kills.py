"""A search under random kills: the trials are those of an undisturbed one, and nothing is left behind."""

import math
import random
import time

import pytest

from tests.cluster.conftest import TWELVE_TRIALS
from tests.cluster.hosts import HEAD, NUM_HOSTS, Cluster, Run, until
from tests.cluster.test_faults import TRIAL, WORKER, outcome

pytestmark = pytest.mark.cluster
SEED = 6
HITS = {"worker": 3, "trial": 4, "driver": 2, "host": 1, "silent host": 1}
"""What is hit, and how often relative to each other: a host needs more than a minute to come back."""
RAYLET = "[r]aylet/raylet"
LEFT_S = 20.0
"""Within which all is released, and has been looked at."""
REST_S = 60.0
"""A host is hit again no sooner: Ray never again starts one of your own machines that it lost while starting it."""


class Chaos:
    """Kills something every so many seconds, and starts the command again when its driver was hit.

    With `most` hits a machine so slow that it starts no driver in time comes to an end, too.
    """

    def __init__(self, cluster: Cluster, every: float, most: float = math.inf) -> None:
        self.cluster, self.every, self.most = cluster, every, most
        self.rng = random.Random(SEED)
        self.done: list[str] = []
        self.host_hit = dict.fromkeys(range(HEAD + 1, HEAD + NUM_HOSTS), -REST_S)

    @property
    def num_hits(self) -> int:
        """How often there was something to hit."""
        return sum(not what.startswith("no ") for what in self.done)

    def through(self, output: str, *sets: str, timeout: float) -> Run:
        """The run, once it has come to its end."""
        run = self.cluster.begin("tune", output, *sets)
        start = hit = time.monotonic()
        while True:
            assert time.monotonic() - start < timeout, f"after {self.done}:\n{run.told}"
            status = run.process.poll()
            if status == 0:
                return run
            if status is not None:
                assert self.done[-1:] == ["driver"], (
                    f"ended though it was not hit, after {self.done}:\n{run.told}"
                )
                run = self.cluster.begin(
                    "tune", output, *sets, resume=(run.folder / "config.yaml").exists()
                )
            if self.num_hits < self.most and time.monotonic() - hit >= self.every:
                self.hit()
                hit = time.monotonic()
            time.sleep(0.5)

    def hit(self) -> None:
        """A worker of Ray Train, a process of trials, the driver, or a host, which comes back; what there is of it."""
        (what,) = self.rng.choices([*HITS], weights=[*HITS.values()])
        if what in ("worker", "trial"):
            pattern = WORKER if what == "worker" else TRIAL
            where = self.cluster.hosts_of(pattern)
            what = (
                what
                if where and self.cluster.kill(self.rng.choice(where), pattern)
                else f"no {what}"
            )
        elif what == "driver":
            what = what if self.cluster.kill(HEAD, "[r]aymtl tune") else "no driver"
        else:
            now = time.monotonic()
            there = self.cluster.hosts_of(RAYLET)
            hosts = [
                host for host, at in self.host_hit.items() if host in there and now - at >= REST_S
            ]
            if hosts:
                host = self.rng.choice(hosts)
                self.host_hit[host] = now
                self.cluster.hosts("kill" if what == "host" else "poweroff", str(host))
                self.cluster.hosts("start", str(host))
            else:
                what = f"no {what}"
        self.done.append(what)


def left_behind(cluster: Cluster) -> list[str]:
    """Placement groups that are not removed, and processes of trials and workers."""
    groups = cluster.listed("placement_groups")
    found = [str(group["name"]) for group in groups if group["state"] != "REMOVED"]
    return found + [pattern for pattern in (WORKER, TRIAL) if cluster.hosts_of(pattern)]


def assert_unchanged(chaos: Chaos, output: str, straight: Run, *sets: str) -> None:
    """The search of `straight`, once more and under kills."""
    expected = outcome(straight)
    start = time.monotonic()
    run = chaos.through(
        output, *sets, "train.wait_for_nodes_s=120", timeout=20 * len(expected) + 600
    )
    print(f"{len(expected)} trials in {time.monotonic() - start:.0f} s under {chaos.done}")
    assert chaos.num_hits >= 3
    assert [row[0] for row in outcome(run)] == list(range(len(expected)))
    assert outcome(run) == expected
    chaos.cluster.wait_for_nodes(NUM_HOSTS)
    until(lambda: not left_behind(chaos.cluster), "nothing to be left behind", LEFT_S)


def test_random_kills_change_no_search(cluster: Cluster, twelve_trials: tuple[Run, float]) -> None:
    straight, _ = twelve_trials
    assert_unchanged(Chaos(cluster, 30.0, most=6), "chaos", straight, *TWELVE_TRIALS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trials", "workers", "every"),
    [
        pytest.param(12, 2, 30.0, id="12 trials of two workers"),
        pytest.param(100, 1, 20.0, id="100 trials"),
    ],
)
def test_random_kills_change_no_large_search(
    cluster: Cluster, trials: int, workers: int, every: float
) -> None:
    sets = (
        f"tune.trials={trials}", f"tune.workers_per_trial={workers}", f"tune.concurrency={4 // workers}",
        "train.steps=150",
    )  # fmt: skip
    straight = cluster.begin("tune", f"calm-{trials}-{workers}", *sets)
    straight.finish(900)
    assert_unchanged(Chaos(cluster, every), f"chaos-{trials}-{workers}", straight, *sets)
