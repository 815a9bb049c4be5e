"""Workers come and go: the number changes in the middle of a training, and the numbers that it computes do not."""

import contextlib
import itertools
import json
import logging
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor
from torch import distributed as dist

from raymtl.config import Experiment
from raymtl.data.episodes import build_episodes
from raymtl.internals import ray as ray_internals
from raymtl.step.meta_gradient import MetaGradient, meta_gradient
from raymtl.step.workers import Workers
from raymtl.storage import formats
from raymtl.training import checkpoint, loop, stage
from raymtl.training.context import TrainContext
from raymtl.training.loop import local_batches, train_loop
from raymtl.types import MetaBatch
from tests.conftest import axes, experiment
from tests.processes import run_on
from tests.training.runs import Stopped

CASES = [
    ("cross_stitch", "db_mtl", "maml"),
    ("hard", "gradvac", "meta_sgd"),
    ("hard", "nash_mtl", "anil"),
]
"""Gradient weightings that remember something from step to step, each with a learner."""
PHASES = [(4, 3), (2, 6), (4, 9)]
"""Numbers of workers, and the step after which they are stopped; 9 is the last."""


def ragged(case: tuple[str, str, str]) -> Experiment:
    """Five episodes a step: ragged on four workers and on two."""
    return axes(*case).override({"train.meta_batch": 5, "train.steps": 9, "train.eval_every": 3})


def trained(
    case: tuple[str, str, str], arrays: Any, folder: Path, workers: Workers, stop_at: int
) -> dict[int, dict[str, Tensor]]:
    """Trains to a step; the meta-gradients by step."""
    chosen = ragged(case)
    found: dict[int, dict[str, Tensor]] = {}

    def batches(first_step: int) -> Iterator[tuple[int, int, MetaBatch]]:
        for step in range(first_step, chosen.train.steps):
            indices = workers.share(chosen.train.meta_batch)
            built, _ = build_episodes(
                chosen.data, arrays, seed=chosen.seed, split="train", step=step, indices=indices
            )
            yield step, workers.rank, built

    def kept(*args: Any) -> MetaGradient:
        meta = meta_gradient(*args)
        found[args[-1]] = {name: gradient.clone() for name, gradient in meta.grads.items()}
        return meta

    def report(scores: dict[str, float]) -> None:
        if scores["step"] == stop_at < chosen.train.steps:
            raise Stopped

    folder.mkdir(exist_ok=True)
    with mock.patch.object(stage, "meta_gradient", kept), contextlib.suppress(Stopped):
        train_loop(chosen, arrays, batches, TrainContext(report, lambda row: None, workers), folder)
    return found


def on_one_of_four(rank: int, folder: str, arrays: Any) -> None:
    """A process that is one of the workers in every phase that has as many."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    for phase, (size, stop_at) in enumerate(PHASES):
        if rank >= size:
            continue
        torch.manual_seed(100 * phase + rank)
        dist.init_process_group(
            "gloo", init_method=f"file://{folder}/meet-{phase}", rank=rank, world_size=size
        )
        for number, case in enumerate(CASES):
            found = trained(case, arrays, Path(folder) / str(number), Workers(rank, size), stop_at)
            torch.save(found, f"{folder}/gradients-{number}-{phase}-{rank}.pt")
        dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
def test_elastic_meta_gradients_equal_one_workers(
    arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    """To 1e-10, at every step and on every worker; and so are the parameters in the end."""
    run_on(4, on_one_of_four, str(tmp_path), arrays)
    for number, case in enumerate(CASES):
        alone = tmp_path / f"{number}-alone"
        expected = trained(case, arrays, alone, Workers(), stop_at=9)
        start = 0
        for phase, (size, stop) in enumerate(PHASES):
            for rank in range(size):
                found = torch.load(
                    tmp_path / f"gradients-{number}-{phase}-{rank}.pt", weights_only=True
                )
                assert list(found) == list(range(start, stop))
                for step, gradients in found.items():
                    assert _off(gradients, expected[step]) <= 1e-10, (case, step, rank)
            start = stop
        ends = [
            formats.load_params(path / "model.safetensors")
            for path in (tmp_path / str(number), alone)
        ]
        assert _off(*ends) <= 1e-10, case
        history = formats.read_rows(tmp_path / str(number) / "history.parquet")
        assert [row["workers"] for row in history] == [4] * 3 + [2] * 3 + [4] * 3


def _off(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """The relative error of all tensors together."""
    assert found.keys() == expected.keys()
    one, other = (
        torch.cat([tensors[name].flatten() for name in expected]) for tensors in (found, expected)
    )
    return float((one - other).norm() / other.norm())


def test_requested_checkpoints_are_of_the_last_step(
    arrays: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked before the third of eight steps ends, and none but the last is scored: that one is kept, and then told."""
    monkeypatch.setattr(loop, "ASK_S", 0.0)
    chosen = experiment(train__steps=8, train__eval_every=8, train__checkpoint_share=0)
    made: list[Mapping[str, float | None]] = []

    def kept() -> None:
        assert (len(made), checkpoint.newest_step(tmp_path)) == (3, 3)
        raise Stopped

    context = TrainContext(
        lambda scores: None, made.append, is_preempted=lambda: len(made) >= 3, confirm_saved=kept
    )
    with pytest.raises(Stopped):
        train_loop(chosen, arrays, local_batches(chosen, arrays), context, tmp_path)


@pytest.fixture
def elastic() -> Any:
    pytest.importorskip("ray")
    from raymtl.distributed import elastic

    return elastic


def test_ending_workers_stop_after_their_checkpoint(
    elastic: Any,
) -> None:
    """Another one goes on."""
    stop = elastic.StopRequest()
    stop.confirm_saved()  # of another reason: nobody asked
    assert not stop.request()
    assert stop.is_requested
    training = threading.Thread(target=stop.confirm_saved, daemon=True)
    training.start()
    training.join(0.5)
    assert training.is_alive()
    assert stop.request()


@pytest.mark.parametrize("end", ["kept", "failed", "finished", "lost"])
def test_the_controller_awaits_checkpoints(
    end: str, elastic: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Taking reports meanwhile, but of no worker that ended."""
    from ray.exceptions import RayActorError
    from ray.train.v2._internal.execution.controller.state import ResizingState, RunningState
    from ray.train.v2._internal.execution.scaling_policy import ResizeDecision

    monkeypatch.setattr(elastic, "POLL_S", 0.001)
    polls: list[float] = []

    def poll_status(timeout: float) -> Any:
        polls.append(timeout)
        over = len(polls) > 3
        return SimpleNamespace(errors={0: "it broke"} if over and end == "failed" else {},
                               finished=over and end == "finished")  # fmt: skip

    def execute_single(rank: int, asked: Any) -> bool:
        assert (rank, asked) == (0, elastic.request_stop)
        if end == "lost" and len(polls) > 3:
            raise RayActorError
        return end == "kept" and len(polls) > 3

    (asks,) = ray_internals.controller_callbacks(elastic.CheckpointBeforeShutdown())
    asks.after_worker_group_start(
        SimpleNamespace(poll_status=poll_status, execute_single=execute_single)
    )
    asks.after_controller_state_update(RunningState(), RunningState())
    assert polls == []
    asks.after_controller_state_update(
        RunningState(), ResizingState(ResizeDecision(4, {"CPU": 1.0}))
    )
    assert len(polls) == 4


def test_the_controller_has_survivors_write(elastic: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of four workers one is lost, one knows of it, one still makes a step, and one does not answer."""
    from ray.exceptions import GetTimeoutError

    monkeypatch.setattr(elastic, "POLL_S", 0.001)
    asked: list[int] = []

    class Worker:
        def __init__(self, rank: int) -> None:
            self.rank = rank

        def execute_async(self, what: Any) -> int:
            assert what is elastic.write_emergency_checkpoint
            return self.rank

    def get(rank: int, timeout: float) -> bool:
        asked.append(rank)
        if rank == 3:
            raise GetTimeoutError
        return asked.count(2) > 1

    monkeypatch.setattr(elastic.ray, "get", get)
    group = SimpleNamespace(
        get_workers=lambda: [Worker(rank) for rank in range(4)],
        _poll_workers_and_collect_errors=lambda timeout: [
            SimpleNamespace(running=rank > 1) for rank in range(4)
        ],
    )
    elastic.CheckpointBeforeShutdown().before_group_shutdown(group)
    assert asked == [2, 3, 2, 3]


def test_the_training_gives_what_is_requested(elastic: Any) -> None:
    stop = elastic.StopRequest()
    assert stop.write_emergency_checkpoint()  # nothing is trained yet
    stop.register_emergency_hook(lambda: False)
    assert not stop.write_emergency_checkpoint()


STEPS, EVERY = 450, 200


class Arrays(dict[str, np.ndarray]):
    """Of which an episode is slow to build as long as a file is there."""

    slow: Path

    def __getitem__(self, key: str) -> np.ndarray:
        if key == "train_members" and self.slow.exists():
            time.sleep(1.0)
        return super().__getitem__(key)


def until(is_so: Callable[[], Any], failed: threading.Event, timeout_s: float = 900) -> None:
    end = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < end and not failed.is_set()
        time.sleep(0.1)


@contextlib.contextmanager
def cluster() -> Iterator[Any]:
    """A head with room for two workers, before which another machine stands for two more."""
    import ray
    from ray.cluster_utils import Cluster

    os.environ.pop("RAY_ADDRESS", None)
    quick = {"RAY_health_check_initial_delay_ms": "1000", "RAY_health_check_period_ms": "1000"}
    os.environ.update(quick)
    head: dict[str, Any] = {"num_cpus": 2, "include_dashboard": True}
    head["dashboard_port"] = None  # one that is free: tests beside this one have a Ray too
    made = Cluster(initialize_head=True, head_node_args=head)
    try:
        ray.init(
            address=made.address, log_to_driver=False, logging_level=logging.ERROR,
            runtime_env={"env_vars": {"PYTHONPATH": str(Path(__file__).parent.parent.parent)}},
        )  # fmt: skip
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


@pytest.mark.slow
def test_elastic_training_equals_one_worker(tmp_path: Path) -> None:
    """In a process of its own: where a process has had another Ray before, this one's GCS was seen
    to take the driver for failed when the second machine came.
    """
    pytest.importorskip("ray")
    process = multiprocessing.get_context("spawn").Process(target=train_elastic, args=(tmp_path,))
    process.start()
    process.join(1800)
    assert process.exitcode == 0


def train_elastic(folder: Path) -> None:
    """A machine is lost and another one comes. Scores, each with a checkpoint, are at steps 200, 400
    and 450 alone.
    """
    with cluster() as machines:
        compare_elastic_with_one_worker(machines, folder)


def compare_elastic_with_one_worker(cluster: Any, tmp_path: Path) -> None:
    import ray

    from raymtl.distributed import trainer as training

    training.LOOK_S = 5.0
    os.environ[training.START_TIMEOUT] = str(training.ELASTIC_START_S)
    chosen = experiment(
        weighting__name="uncertainty", train__steps=STEPS, train__eval_every=EVERY, train__checkpoint_share=0,
        train__optimizer="sgd", train__lr=0.01, train__meta_batch=6, train__workers=4, train__min_workers=2,
    )  # fmt: skip
    arrays = chosen.data.load()
    alone, folder = tmp_path / "alone", tmp_path / "elastic"
    alone.mkdir()
    folder.mkdir()
    train_loop(
        chosen,
        arrays,
        local_batches(chosen, arrays),
        TrainContext(lambda scores: None, lambda row: None),
        alone,
    )

    given = Arrays(arrays)
    given.slow = tmp_path / "slow"
    failed = threading.Event()

    def fit() -> None:
        try:
            training.train(
                chosen,
                ray.put(given),
                folder,
                training.TrainerSpec(
                    "elastic", tmp_path / "ray", workers=4, min_workers=2, cpus=1.0, gpus=0.0
                ),
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
    fitting.join(600)
    assert not fitting.is_alive() and not failed.is_set()

    history = formats.read_rows(folder / "history.parquet")
    assert [row["step"] for row in history] == list(range(1, STEPS + 1))
    assert [workers for workers, _ in itertools.groupby(row["workers"] for row in history)] == [
        4,
        2,
        4,
    ]
    for one, many in zip(formats.read_rows(alone / "history.parquet"), history, strict=True):
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
