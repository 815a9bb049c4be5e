"""A search under random kills: the trials are those of an undisturbed one, and nothing is left behind."""

import random
import time

import pytest

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
    """Kills something every so many seconds, and starts the command again when its driver was hit."""

    def __init__(self, cluster: Cluster, every: float) -> None:
        self.cluster, self.every = cluster, every
        self.rng = random.Random(SEED)
        self.done: list[str] = []
        self.host_hit = dict.fromkeys(range(HEAD + 1, HEAD + NUM_HOSTS), -REST_S)

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
            if time.monotonic() - hit >= self.every:
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
    groups = cluster.on_head(
        "python3 - <<'PY'\nimport ray\nray.init(address='auto', logging_level='ERROR', log_to_driver=False)\n"
        "table = ray.util.placement_group_table()\n"
        "print('groups:', [g['name'] for g in table.values() if g['state'] != 'REMOVED'])\nPY"
    )
    found = [] if "groups: []" in groups else [groups.strip().splitlines()[-1]]
    return found + [pattern for pattern in (WORKER, TRIAL) if cluster.hosts_of(pattern)]


@pytest.mark.parametrize(
    ("trials", "workers", "every"),
    [
        pytest.param(12, 1, 30.0, id="12 trials"),
        pytest.param(12, 2, 30.0, marks=pytest.mark.slow, id="12 trials of two workers"),
        pytest.param(100, 1, 20.0, marks=pytest.mark.slow, id="100 trials"),
    ],
)
def test_random_kills_change_no_search(
    cluster: Cluster, trials: int, workers: int, every: float
) -> None:
    sets = (
        f"tune.trials={trials}", f"tune.workers_per_trial={workers}", f"tune.concurrency={4 // workers}",
        "train.steps=150", "train.wait_for_nodes_s=120",
    )  # fmt: skip
    straight = cluster.begin("tune", f"calm-{trials}-{workers}", *sets)
    straight.finish(900)
    chaos = Chaos(cluster, every)
    start = time.monotonic()
    run = chaos.through(f"chaos-{trials}-{workers}", *sets, timeout=20 * trials + 600)
    print(f"{trials} trials in {time.monotonic() - start:.0f} s under {chaos.done}")
    assert len([what for what in chaos.done if not what.startswith("no ")]) >= 3
    assert [row[0] for row in outcome(run)] == list(range(trials))
    assert outcome(run) == outcome(straight)
    cluster.wait_for_nodes(NUM_HOSTS)
    until(lambda: not left_behind(cluster), "nothing to be left behind", LEFT_S)
