"""From `ray up` over `ray job submit` to `ray down`, as docs/cluster.md says, by the clock."""

import json
import time

import optuna
import pytest

from raymtl import runs
from raymtl.config import load
from raymtl.tune import open_study
from tests.cluster.hosts import NUM_HOSTS, SHARED, Cluster, Run, quoted, until

pytestmark = pytest.mark.cluster
RELEASED_S = 10.0
WATCH = f"""
import json, pathlib, time, ray
ray.init(address="auto", logging_level="ERROR", log_to_driver=False)
while not pathlib.Path("{SHARED}/watched").exists():
    table = ray.util.placement_group_table()
    print(json.dumps([time.time(), [key for key, group in table.items() if group["state"] != "REMOVED"]]), flush=True)
    time.sleep(0.5)
"""


def submit(cluster: Cluster, output: str, *sets: str) -> Run:
    """`raymtl tune` as a job, with the cluster's token, and its end."""
    words = quoted(*cluster.raymtl("tune", output, *sets))
    run = cluster.started(f"ray job submit --address http://127.0.0.1:8265 -- {words}", output)
    run.finish(600)
    return run


def test_twelve_trials_and_a_training_on_two_nodes_from_up_to_down(cluster: Cluster) -> None:
    assert cluster.on_head("ray status").count("node_") == NUM_HOSTS
    start = time.monotonic()
    run = submit(cluster, "launch", "tune.trials=12")
    searched = time.monotonic() - start
    rows = runs.read_rows(run.folder / "trials.parquet")
    assert [(row["number"], row["state"]) for row in rows] == [(number, "complete") for number in range(12)]
    assert (run.folder / "best" / "metrics.json").exists()
    assert (run.folder / "report.html").exists()
    print(f"ray up: {cluster.up_s:.0f} s, 12 trials and the training: {searched:.0f} s")


def test_what_trials_of_two_workers_hold_is_released_when_they_end(cluster: Cluster) -> None:
    """Half of them are stopped by ASHA, which ends a trial while its Ray Train workers are at work."""
    watcher = cluster.started(f"python3 -c {quoted(WATCH)}", "watch")
    until(lambda: "[" in watcher.told, "the first look", 60)
    run = submit(
        cluster, "nested", "tune.trials=6", "tune.workers_per_trial=2", "tune.asha={grace: 50, reduction: 2}",
        "train.eval_every=50", "train.steps=200",
    )  # fmt: skip
    time.sleep(RELEASED_S)
    (cluster.hosts.shared / "watched").touch()
    watcher.process.wait(60)
    ends = [trial.datetime_complete.timestamp() for trial in studied(run).trials]
    states = [row["state"] for row in runs.read_rows(run.folder / "trials.parquet")]
    assert "pruned" in states
    assert "complete" in states
    last_seen: dict[str, float] = {}
    first_seen: dict[str, float] = {}
    for line in watcher.told.splitlines():
        at, groups = json.loads(line)
        for group in groups:
            first_seen.setdefault(group, at)
            last_seen[group] = at
    held = [(first_seen[group], last_seen[group]) for group in first_seen]
    slow = [until_ - max((end for end in ends if end <= until_), default=until_) for _, until_ in held]
    print("ends", [round(end - min(first_seen.values()), 1) for end in sorted(ends)])
    print("held", sorted((round(a - min(first_seen.values()), 1), round(b - a, 1)) for a, b in held))
    assert max(slow) <= RELEASED_S


def studied(run: Run) -> optuna.Study:
    return open_study(run.folder, load(run.folder / "config.yaml"))


def test_down_ends_everything(cluster: Cluster) -> None:
    start = time.monotonic()
    cluster.down()
    down = time.monotonic() - start
    assert not cluster.on_head("pgrep -f raylet", check=False).strip()
    until(lambda: not cluster.hosts_of("[r]aylet"), "the workers to follow", 60)
    print(f"ray down: {down:.0f} s")
