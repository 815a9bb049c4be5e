"""Faults on real hosts: whatever is lost of the cluster, nothing is lost of the run."""

import json
import time

import pytest
import torch
from safetensors.torch import load_file

from raymtl import runs
from tests.cluster.hosts import HEAD, NUM_HOSTS, Cluster, Run, until

pytestmark = pytest.mark.cluster

# A letter in brackets, so that the shell that looks does not find itself.
WORKER = "[r]ay::RayTrainWorker"
TRIAL = "[r]ay::ImplicitFunc"


@pytest.fixture(scope="module")
def straight(cluster: Cluster) -> Run:
    """A training that nothing happened to."""
    run = cluster.begin("train", "straight")
    run.finish()
    return run


@pytest.fixture(scope="module")
def searched(cluster: Cluster) -> Run:
    """A search that nothing happened to."""
    run = cluster.begin("tune", "searched")
    run.finish()
    return run


def assert_same_training(run: Run, straight: Run) -> None:
    one, other = (load_file(each.folder / "best" / "model.safetensors") for each in (run, straight))
    assert all(torch.equal(one[name], other[name]) for name in one)
    rows, expected = (runs.read_rows(each.folder / "history.parquet") for each in (run, straight))
    assert [row["step"] for row in rows] == [row["step"] for row in expected]
    assert [row["loss.number"] for row in rows] == [row["loss.number"] for row in expected]


def outcome(run: Run) -> list[tuple]:
    """What every trial came to, by its number."""
    rows = runs.read_rows(run.folder / "trials.parquet")
    return [
        (row["number"], row["state"], row["step"], row["learner.inner_lr"], row["train.lr"], row["val.score"])
        for row in rows
    ]


def resumed(run: Run, model: str = "best") -> list[dict]:
    path = run.folder / model / "resumes.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def repeated(run: Run, before: int) -> int:
    """How many steps were made again, where `before` was the last one known to be done."""
    return before - int(resumed(run)[-1]["from"].removeprefix("step_"))


def seconds_to_go_on(run: Run, killed_at_step: int, since: float, timeout: float) -> float:
    until(lambda: run.step() > killed_at_step or run.process.poll() is not None, "a further step", timeout, every=0.1)
    return time.monotonic() - since


def test_a_killed_worker_costs_seconds_and_no_result(cluster: Cluster, straight: Run) -> None:
    run = cluster.begin("train", "worker")
    run.reach(100)
    step, since = run.step(), time.monotonic()
    where = cluster.hosts_of(WORKER)
    assert len(where) == 2, "the workers are on two hosts"
    assert cluster.kill(where[-1], WORKER)
    taken = seconds_to_go_on(run, step + 20, since, 120)
    run.finish()
    assert_same_training(run, straight)
    assert len(resumed(run)) == 1
    print(f"worker killed: went on after {taken:.1f} s")


def test_a_killed_trial_is_run_on_under_its_number(cluster: Cluster, searched: Run) -> None:
    run = cluster.begin("tune", "trial")
    until(lambda: run.trials_ended() >= 2, "two trials", 240)
    killed = sum(cluster.kill(host, TRIAL) for host in range(HEAD, HEAD + NUM_HOSTS))
    assert killed >= 1
    run.finish()
    assert outcome(run) == outcome(searched)


def test_a_killed_driver_goes_on_with_resume(cluster: Cluster, searched: Run) -> None:
    run = cluster.begin("tune", "driver")
    until(lambda: run.trials_ended() >= 3, "three trials", 240)
    assert cluster.kill(HEAD, "[r]aymtl tune")
    run.process.wait(60)
    run = cluster.begin("tune", "driver", resume=True)
    run.finish()
    assert outcome(run) == outcome(searched)
    assert len(list(run.folder.parent.iterdir())) == 1


def test_a_host_that_loses_power_is_done_without_and_comes_back(cluster: Cluster, straight: Run) -> None:
    run = cluster.begin("train", "power")
    run.reach(100)
    step, since = run.step(), time.monotonic()
    where = [host for host in cluster.hosts_of(WORKER) if host != HEAD]
    cluster.hosts("poweroff", str(where[-1]))
    taken = seconds_to_go_on(run, step + 20, since, 200)
    run.finish()
    assert_same_training(run, straight)
    cluster.hosts("start", str(where[-1]))
    cluster.wait_for_nodes(NUM_HOSTS)
    print(f"host without power: went on after {taken:.1f} s")


def test_a_host_that_is_cut_off_for_a_while_costs_no_result(cluster: Cluster, straight: Run) -> None:
    run = cluster.begin("train", "cut")
    run.reach(100)
    where = [host for host in cluster.hosts_of(WORKER) if host != HEAD]
    cluster.hosts("cut", str(where[-1]))
    time.sleep(20)
    cluster.hosts("heal", str(where[-1]))
    run.finish()
    assert_same_training(run, straight)
    cluster.wait_for_nodes(NUM_HOSTS)


def test_two_searches_at_once_do_not_touch_each_other(cluster: Cluster, searched: Run) -> None:
    both = [cluster.begin("tune", name) for name in ("one", "two")]
    for run in both:
        run.finish(600)
    assert outcome(both[0]) == outcome(both[1]) == outcome(searched)


def test_a_lost_head_is_raised_again_and_the_search_resumed(cluster: Cluster, searched: Run) -> None:
    run = cluster.begin("tune", "head")
    until(lambda: run.trials_ended() >= 3, "three trials", 240)
    cluster.hosts("poweroff", str(HEAD))
    run.process.wait(60)
    cluster.hosts("start", str(HEAD))
    cluster.up()
    run = cluster.begin("tune", "head", resume=True)
    run.finish()
    assert outcome(run) == outcome(searched)
