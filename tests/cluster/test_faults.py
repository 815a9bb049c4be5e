"""Faults on real hosts: whatever is lost of the cluster, nothing is lost of the run."""

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from raymtl.storage import formats
from tests.cluster.hosts import HEAD, MEMORY_CGROUP, NUM_HOSTS, Cluster, Run, until

pytestmark = pytest.mark.cluster

# A letter in brackets, so that the shell that looks does not find itself.
WORKER = "[r]ay::RayTrainWorker"
TRIAL = "[r]ay::ImplicitFunc"
NOTICE_S = 8
GOES_ON_S = 30.0
FAR_APART = ("train.checkpoint_share=0", "train.eval_every=150")
"""Checkpoints are at steps 149, 150, 299 and 300 alone."""


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
    rows, expected = (
        formats.read_rows(each.folder / "history.parquet") for each in (run, straight)
    )
    assert [row["step"] for row in rows] == [row["step"] for row in expected]
    assert [row["loss.number"] for row in rows] == [row["loss.number"] for row in expected]


def outcome(run: Run) -> list[tuple[Any, ...]]:
    """What every trial came to, by its number."""
    rows = formats.read_rows(run.folder / "trials.parquet")
    return [
        (
            row["number"],
            row["state"],
            row["step"],
            row["learner.inner_lr"],
            row["train.lr"],
            row["val.score"],
        )
        for row in rows
    ]


def resumed(run: Run, model: str = "best") -> list[dict[str, Any]]:
    path = run.folder / model / "resumes.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def lose_between_checkpoints(run: Run, lose: Callable[[], object], within_s: float) -> float:
    """Seconds until the training of a run that is begun with `FAR_APART` goes on after something of it is lost.

    No checkpoint is due when it is: what was done since the one before is kept because of the loss, or not at all.
    """
    run.reach(150)
    time.sleep(2)
    since = time.monotonic()
    lose()
    until(
        lambda: bool(resumed(run)) or run.process.poll() is not None,
        "training to go on",
        within_s,
        every=0.1,
    )
    taken = time.monotonic() - since
    run.finish()
    (again,) = resumed(run)
    assert 150 < int(again["from"].removeprefix("step_")) < 299
    return taken


def test_a_killed_worker_costs_seconds_and_no_result(cluster: Cluster, straight: Run) -> None:
    run = cluster.begin("train", "worker", *FAR_APART)

    def kill() -> None:
        where = cluster.hosts_of(WORKER)
        assert len(where) == 2, "the workers are on two hosts"
        assert cluster.kill(where[-1], WORKER)

    taken = lose_between_checkpoints(run, kill, GOES_ON_S)
    assert_same_training(run, straight)
    print(f"worker killed: went on after {taken:.1f} s")


@pytest.mark.slow
def test_killed_trials_continue_under_their_number(cluster: Cluster, searched: Run) -> None:
    run = cluster.begin("tune", "trial")
    until(lambda: run.trials_ended() >= 2, "two trials", 240)
    killed = sum(cluster.kill(host, TRIAL) for host in range(HEAD, HEAD + NUM_HOSTS))
    assert killed >= 1
    run.finish()
    assert outcome(run) == outcome(searched)


@pytest.mark.slow
def test_a_killed_driver_goes_on_with_resume(cluster: Cluster, searched: Run) -> None:
    run = cluster.begin("tune", "driver")
    until(lambda: run.trials_ended() >= 3, "three trials", 240)
    assert cluster.kill(HEAD, "[r]aymtl tune")
    run.process.wait(60)
    run = cluster.begin("tune", "driver", resume=True)
    run.finish()
    assert outcome(run) == outcome(searched)
    assert len(list(run.folder.parent.iterdir())) == 1


@pytest.mark.parametrize(
    ("how", "within_s"),
    [
        pytest.param("poweroff", 120, id="silently"),
        pytest.param("kill", 90, id="closing its connections", marks=pytest.mark.slow),
    ],
)
def test_lost_hosts_are_done_without(
    how: str, within_s: int, cluster: Cluster, straight: Run
) -> None:
    """And come back."""
    run = cluster.begin("train", how, *FAR_APART)
    lost: list[int] = []

    def lose() -> None:
        lost.extend(host for host in cluster.hosts_of(WORKER) if host != HEAD)
        cluster.hosts(how, str(lost[-1]))

    taken = lose_between_checkpoints(run, lose, within_s)
    assert_same_training(run, straight)
    cluster.hosts("start", str(lost[-1]))
    cluster.wait_for_nodes(NUM_HOSTS)
    print(f"host lost by {how}: went on after {taken:.1f} s")


def test_preempted_hosts_checkpoint_in_time(cluster: Cluster, straight: Run) -> None:
    """Without a notice, checkpoints would be kept with the scores and one step before them alone."""
    run = cluster.begin("train", "spot", "train.checkpoint_share=0", "train.max_failures=0")
    run.reach(49)
    where = [host for host in cluster.hosts_of(WORKER) if host != HEAD]
    cluster.give_notice(where[-1], NOTICE_S)
    given = time.monotonic()
    until(
        lambda: run.step() % 50 not in (0, 49),
        "a checkpoint because of the notice",
        NOTICE_S,
        every=0.1,
    )
    time.sleep(max(0.0, given + NOTICE_S - time.monotonic()))
    step = run.step()
    cluster.hosts("kill", str(where[-1]))
    run.finish()
    assert_same_training(run, straight)
    assert int(resumed(run)[0]["from"].removeprefix("step_")) >= step
    cluster.hosts("start", str(where[-1]))
    cluster.wait_for_nodes(NUM_HOSTS)


@pytest.mark.slow
def test_cut_off_hosts_cost_no_result(cluster: Cluster, straight: Run) -> None:
    run = cluster.begin("train", "cut")
    run.reach(100)
    where = [host for host in cluster.hosts_of(WORKER) if host != HEAD]
    cluster.hosts("cut", str(where[-1]))
    time.sleep(20)
    cluster.hosts("heal", str(where[-1]))
    run.finish()
    assert_same_training(run, straight)
    cluster.wait_for_nodes(NUM_HOSTS)


@pytest.mark.slow
def test_lost_storage_is_waited_for(cluster: Cluster, straight: Run) -> None:
    """For a minute."""
    run = cluster.begin("train", "away")
    run.reach(100)
    with cluster.hosts.storage_away():
        step = run.step()
        time.sleep(60)
        assert run.step() == step
    run.finish()
    assert_same_training(run, straight)
    assert not resumed(run), "no worker was lost for it"


@pytest.mark.slow
def test_full_storage_costs_no_trial(cluster: Cluster, searched: Run) -> None:
    run = cluster.begin("tune", "full")
    until(lambda: run.trials_ended() >= 2, "two trials", 240)
    with cluster.hosts.storage_full():
        time.sleep(20)
    run.finish()
    assert outcome(run) == outcome(searched)


@pytest.mark.slow
def test_killed_drivers_pass_over_damaged_checkpoints(cluster: Cluster, straight: Run) -> None:
    run = cluster.begin("train", "damaged")
    run.reach(100)
    assert cluster.kill(HEAD, "[r]aymtl train")
    run.process.wait(60)
    # The workers may still write while they are ended.
    until(lambda: not cluster.hosts_of(WORKER), "the end of the workers", 60)
    damaged = run.folder / "best" / "checkpoints" / f"step_{run.step():08d}" / "model.safetensors"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    run = cluster.begin("train", "damaged", resume=True)
    run.finish()
    assert_same_training(run, straight)
    (last,) = (row for row in resumed(run) if row["passed_over"])
    assert "model.safetensors has another checksum" in last["passed_over"][0]
    assert last["from"]


@pytest.mark.slow
@pytest.mark.skipif(not MEMORY_CGROUP.is_dir(), reason="hosts without a limit to their memory")
def test_failing_trials_fail_alone(cluster: Cluster) -> None:
    """Of two values of each, one makes the loss blow up, and one takes more memory than a host has."""
    run = cluster.begin(
        "tune", "bad", "train.max_failures=1", "train.steps=50", "tune.trials=6", "seed=1",
        "search={learner.inner_lr: {choice: [0.05, 1.0e+30]}, encoder.hidden: {choice: [[32], [40000, 40000]]}}",
    )  # fmt: skip
    run.finish()
    rows = formats.read_rows(run.folder / "trials.parquet")
    kinds = {(len(row["encoder.hidden"]), row["learner.inner_lr"]): row for row in rows}
    assert len(rows) == 6
    assert len(kinds) == 4, "each of the four was drawn"
    for (width, inner_lr), row in kinds.items():
        reason = row["reason"] or ""
        if width == 2:
            assert "the trial's process ended with an error" in reason
        elif inner_lr > 1:
            assert "at step 1" in reason
        assert row["state"] == ("complete" if (width, inner_lr) == (1, 0.05) else "failed")


@pytest.mark.slow
def test_concurrent_searches_are_independent(cluster: Cluster, searched: Run) -> None:
    both = [cluster.begin("tune", name) for name in ("one", "two")]
    for run in both:
        run.finish(600)
    assert outcome(both[0]) == outcome(both[1]) == outcome(searched)


@pytest.mark.slow
def test_searches_resume_after_a_lost_head(cluster: Cluster, searched: Run) -> None:
    run = cluster.begin("tune", "head")
    until(lambda: run.trials_ended() >= 3, "three trials", 240)
    cluster.hosts("poweroff", str(HEAD))
    run.process.wait(60)
    cluster.hosts("start", str(HEAD))
    cluster.up()
    run = cluster.begin("tune", "head", resume=True)
    run.finish()
    assert outcome(run) == outcome(searched)
