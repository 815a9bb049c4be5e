"""From `ray up` over `ray job submit` to `ray down`, as docs/cluster.md says, by the clock."""

import json
import time

import optuna
import pytest

from raymtl.config import load
from raymtl.pipeline.search import open_study
from raymtl.storage import formats
from tests.cluster.hosts import NUM_HOSTS, SHARED, Cluster, Run, quoted, until
from tests.narrowing import present

pytestmark = pytest.mark.cluster
RELEASED_S = 10.0
UP_AND_SEARCH_S = 420.0
"""Of eight minutes, one is left for `ray down`."""
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


def test_two_nodes_run_from_up_to_down(cluster: Cluster) -> None:
    """Twelve trials and a training."""
    nodes = f"{NUM_HOSTS} local.cluster.node"
    # The autoscaler counts a machine some seconds after it has come up.
    until(lambda: nodes in cluster.on_head("ray status"), "all machines in ray status", 60)
    start = time.monotonic()
    run = submit(cluster, "launch", "tune.trials=12")
    searched = time.monotonic() - start
    rows = formats.read_rows(run.folder / "trials.parquet")
    assert [(row["number"], row["state"]) for row in rows] == [
        (number, "complete") for number in range(12)
    ]
    assert (run.folder / "best" / "metrics.json").exists()
    assert (run.folder / "report.html").exists()
    print(f"ray up: {cluster.up_s:.0f} s, 12 trials and the training: {searched:.0f} s")
    assert cluster.up_s + searched < UP_AND_SEARCH_S


@pytest.mark.slow
def test_ended_trials_release_their_resources(cluster: Cluster) -> None:
    """Some of them are stopped by ASHA, which ends a trial while its Ray Train workers are at work."""
    watcher = cluster.started(f"python3 -c {quoted(WATCH)}", "watch")
    until(lambda: "[" in watcher.told, "the first look", 60)
    run = submit(
        cluster, "nested", "tune.trials=4", "tune.concurrency=2", "tune.workers_per_trial=2",
        "tune.asha={grace: 50, reduction: 2}", "train.steps=150",
    )  # fmt: skip
    time.sleep(RELEASED_S)
    (cluster.hosts.shared / "watched").touch()
    watcher.process.wait(60)
    states = [row["state"] for row in formats.read_rows(run.folder / "trials.parquet")]
    assert "pruned" in states
    assert "complete" in states
    first_seen: dict[str, float] = {}
    last_seen: dict[str, float] = {}
    for line in watcher.told.splitlines():
        at, groups = json.loads(line)
        for group in groups:
            first_seen.setdefault(group, at)
            last_seen[group] = at
    trials = studied(run).trials
    for trial in trials:
        end = present(trial.datetime_complete).timestamp()
        held = [
            group
            for group, at in first_seen.items()
            if at < end and last_seen[group] > end + RELEASED_S
        ]
        under_way = [
            other
            for other in trials
            if present(other.datetime_start).timestamp()
            < end
            < present(other.datetime_complete).timestamp()
        ]
        # One of Tune's for the driver and one of Train's for the workers.
        assert len(held) <= 2 * len(under_way), f"after trial {trial.number}, {states}: {held}"


def studied(run: Run) -> optuna.Study:
    return open_study(run.folder, load(run.folder / "config.yaml"))
