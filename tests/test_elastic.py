"""Workers come and go: the number changes in the middle of a training, and the numbers that it computes do not."""

import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raymtl import checkpoint, runs
from raymtl.loop import Host, local_batches, train_loop
from tests.conftest import experiment

STEPS, EVERY = 450, 200


class Arrays(dict[str, np.ndarray]):
    """Of which an episode is slow to build as long as a file is there."""

    slow: Path

    def __getitem__(self, key: str) -> np.ndarray:
        if key == "train_members" and self.slow.exists():
            time.sleep(0.3)
        return super().__getitem__(key)


def until(is_so: Callable[[], Any], failed: threading.Event, timeout_s: float = 240) -> None:
    end = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < end and not failed.is_set()
        time.sleep(0.1)


@pytest.fixture
def cluster(monkeypatch) -> Iterator[Any]:
    """A head with room for two workers, before which another machine stands for two more."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_health_check_initial_delay_ms", "1000")
    monkeypatch.setenv("RAY_health_check_period_ms", "1000")
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    try:
        ray.init(
            address=made.address, log_to_driver=False, logging_level="ERROR",
            runtime_env={"env_vars": {"PYTHONPATH": str(Path(__file__).parent.parent)}},
        )  # fmt: skip
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


@pytest.mark.slow
def test_four_workers_two_and_four_again_train_as_one_does_and_growing_repeats_no_step(
    cluster, arrays, tmp_path: Path, monkeypatch
) -> None:
    """A machine is lost and another one comes. Scores, each with a checkpoint, are at steps 200, 400 and 450 alone."""
    import ray

    from raymtl import train as training

    monkeypatch.setattr(training, "LOOK_S", 5.0)
    monkeypatch.setenv(training.START_TIMEOUT, str(training.ELASTIC_START_S))
    chosen = experiment(
        weighting__name="uncertainty", train__steps=STEPS, train__eval_every=EVERY, train__checkpoint_share=0,
        train__optimizer="sgd", train__lr=0.01, train__meta_batch=6, train__workers=4, train__min_workers=2,
    )  # fmt: skip
    alone, folder = tmp_path / "alone", tmp_path / "elastic"
    alone.mkdir()
    folder.mkdir()
    train_loop(chosen, arrays, local_batches(chosen, arrays), Host(lambda scores: None, lambda row: None), alone)

    given = Arrays(arrays)
    given.slow = tmp_path / "slow"
    failed = threading.Event()

    def fit() -> None:
        try:
            training.train(
                chosen, ray.put(given), folder, ray_folder=tmp_path / "ray", workers=4, fewest=2, cpus=1.0, gpus=0.0
            )
        except BaseException:
            failed.set()
            raise

    machine = cluster.add_node(num_cpus=2)
    fitting = threading.Thread(target=fit, daemon=True)
    fitting.start()
    until(lambda: checkpoint.newest_step(folder) >= EVERY, failed)
    given.slow.touch()
    cluster.remove_node(machine, allow_graceful=False)
    until(lambda: _resumes(folder), failed)
    cluster.add_node(num_cpus=2)
    until(lambda: len(_resumes(folder)) > 1, failed)
    given.slow.unlink()
    fitting.join(240)
    assert not fitting.is_alive() and not failed.is_set()

    history = runs.read_rows(folder / "history.parquet")
    assert [row["step"] for row in history] == list(range(1, STEPS + 1))
    assert [workers for workers, _ in itertools.groupby(row["workers"] for row in history)] == [4, 2, 4]
    for one, many in zip(runs.read_rows(alone / "history.parquet"), history, strict=True):
        for task in chosen.data.task_names:
            assert many[f"loss.{task}"] == pytest.approx(one[f"loss.{task}"], rel=1e-3), one["step"]
    # What it grew from was kept because it was to grow: no score was near.
    shrunk, grown = _resumes(folder)
    assert EVERY <= shrunk < grown < 2 * EVERY


def _resumes(folder: Path) -> list[int]:
    """The steps of the checkpoints that it went on from."""
    path = folder / "resumes.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [checkpoint.step_of(Path(json.loads(line)["from"])) for line in lines]
