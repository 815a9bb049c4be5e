"""Real Ray Train workers: the same meta-gradient on 3 of them; a worker killed, and resumed."""

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from raymtl.cluster.capacity import ResourceRequest
from raymtl.config import Experiment, parse
from raymtl.distributed import PREEMPTION_WATCHER, trainer, worker_environment
from raymtl.distributed.connection import check_address, start_ray
from raymtl.distributed.trainer import TrainerSpec, ensure_resources, is_machine_preempted, train
from raymtl.step.meta_gradient import meta_gradient
from raymtl.storage import formats
from raymtl.types import DivergedError, UserError
from tests.conftest import axes, episodes_of, experiment, perturbed
from tests.distributed.local import local_ray
from tests.distributed.without_ray import deadly, trained_without_ray
from tests.narrowing import several_stacks

ray = pytest.importorskip("ray")


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """Ray on this machine, with room for three workers whatever its size."""
    # Without a dashboard of its own, Ray Train asks that of another Ray on this machine whether its controller lives, is
    # told that there is none, and ends the workers.
    with local_ray(num_cpus=4, include_dashboard=True):
        yield


@pytest.mark.slow
def test_workers_keep_large_blocks_of_memory() -> None:
    """What this process set before Ray began is in the environment of its workers."""
    seen = ray.get(ray.remote(lambda: dict(os.environ)).remote())
    expected = worker_environment()
    assert expected["MALLOC_MMAP_THRESHOLD_"] == "1073741824"
    assert expected.items() <= seen.items()


WEIGHTINGS = ("static", "pcgrad", "famo")
"""One of losses, one of gradients, one with a state; all of them are in tests/step/test_meta_gradient.py."""


def small(weighting: str) -> Experiment:
    """Seven episodes a step: ragged on two workers and on three."""
    return axes("cross_stitch", weighting, "maml").override(
        {"train.meta_batch": 7, "train.steps": 6, "train.eval_every": 2}
    )


def gradients_on_workers(settings: dict[str, Any]) -> None:
    """Runs on each worker: the meta-gradients of the streamed episodes, in float64."""
    import ray.train

    from raymtl.data.episodes import on_device
    from raymtl.distributed.share_builder import ShareBuilder
    from raymtl.distributed.streaming import BuildEpisodes, streamed
    from raymtl.step.workers import Workers

    torch.set_default_dtype(torch.float64)
    context = ray.train.get_context()
    workers = Workers(context.get_world_rank(), context.get_world_size())
    arrays = ray.get(settings["arrays"])
    chosen = small("static").override({"train.meta_batch": 7})
    build = BuildEpisodes(ShareBuilder(chosen, arrays, workers.size), 0)
    for step, share, raw in streamed(ray.train.get_dataset_shard("ids"), build):
        (stack,) = several_stacks(raw)
        assert (
            len(stack.query.inputs) == 7 * (share + 1) // workers.size - 7 * share // workers.size
        )
        for weighting in WEIGHTINGS:
            algorithm = small(weighting).build()
            meta = meta_gradient(algorithm, perturbed(algorithm), on_device(raw, "cpu"), workers)
            torch.save(
                meta.grads,
                f"{settings['folder']}/{weighting}-{workers.size}-{workers.rank}-{step}.pt",
            )


def test_three_workers_equal_one(
    tmp_path: Path, arrays: dict[str, np.ndarray], float64: None
) -> None:
    """The one is this process."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from raymtl.distributed.step_shards import StepShards

    TorchTrainer(
        gradients_on_workers,
        train_loop_config={"arrays": ray.put(arrays), "folder": str(tmp_path)},
        scaling_config=ScalingConfig(num_workers=3),
        torch_config=TorchConfig(backend="gloo"),
        datasets={"ids": ray.data.range(2)},
        dataset_config=StepShards(2),
        run_config=RunConfig(name="gradients", storage_path=str(tmp_path / "ray")),
    ).fit()
    for weighting in WEIGHTINGS:
        chosen = small(weighting)
        for step in range(2):
            algorithm = chosen.build()
            expected = meta_gradient(
                algorithm, perturbed(algorithm), episodes_of(chosen, arrays, step=step)
            ).grads
            for rank in range(3):
                grads = torch.load(tmp_path / f"{weighting}-3-{rank}-{step}.pt", weights_only=True)
                for name, gradient in expected.items():
                    assert (grads[name] - gradient).norm() <= 1e-10 * (gradient.norm() + 1e-12), (
                        weighting,
                        name,
                    )


def test_ids_are_dealt_though_every_cpu_is_taken() -> None:
    """As it is where the workers have all of the machine, so that a task that needs one would wait for ever."""
    from raymtl.distributed.step_shards import id_dataset

    class Everything:
        def taken(self) -> bool:
            return True

    def dealt() -> list[tuple[int, int]]:
        (shard,) = id_dataset(3, 2).streaming_split(1, equal=True)
        return [(row["step"], row["share"]) for row in shard.iter_rows()]

    holder = ray.remote(Everything).options(num_cpus=4).remote()
    assert ray.get(holder.taken.remote())
    ids = ray.remote(dealt).options(num_cpus=0).remote()
    ready, _ = ray.wait([ids], timeout=300)
    assert ready and ray.get(ids) == [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1)]
    ray.kill(holder)


def options(folder: Path, workers: int = 2) -> dict[str, Any]:
    return {"ray_folder": folder / "ray", "workers": workers, "cpus": 1.0, "gpus": 0.0}


@pytest.mark.slow
def test_a_killed_worker_costs_nothing(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    """kill -9 of one of two workers in the middle; the weights are those of an undisturbed run, to the bit.

    The next checkpoint is far away, so what was done is kept by the other worker or not at all.
    """
    chosen = small("pcgrad").override(
        {"train.steps": 40, "train.eval_every": 15, "train.checkpoint_share": 0}
    )
    alone = trained_without_ray(chosen, arrays, tmp_path / "alone", workers=2)
    folder = tmp_path / "killed"
    folder.mkdir()
    # Of two workers, which build some steps ahead: between the checkpoints of steps 15 and 30.
    given = deadly(arrays, tmp_path / "kills", "RayTrainWorker", kills_at=(2 * 24,))
    train(chosen, ray.put(given), folder, TrainerSpec("killing/killed", **options(tmp_path)))
    assert given.num_killed == 1
    resumed = formats.load_params(folder / "model.safetensors")
    for name, value in alone.items():
        assert torch.equal(resumed[name], value), name
    assert [row["step"] for row in formats.read_rows(folder / "history.parquet")] == list(
        range(1, 41)
    )
    (line,) = (folder / "resumes.jsonl").read_text().splitlines()
    assert int(json.loads(line)["from"].removeprefix("step_")) in range(16, 29)


@pytest.mark.slow
def test_divergence_on_workers_keeps_its_type(
    tmp_path: Path, arrays: dict[str, np.ndarray]
) -> None:
    """Ray knows it by name."""
    wild = experiment(
        learner__inner_lr=1e4, learner__inner_steps=8, train__steps=2, train__max_failures=0
    )
    wild = parse(
        wild.model_dump(mode="json") | {"search": {"learner.inner_lr": {"log_uniform": [0.1, 1e5]}}}
    )
    folder = tmp_path / "wild"
    folder.mkdir()
    with pytest.raises(DivergedError, match="at step"):
        train(
            wild, ray.put(arrays), folder, TrainerSpec("wild/best", **options(tmp_path, workers=1))
        )
    kept = ray.get_actor("train_v2_state_actor", namespace="_train_state_actor")
    (run,) = (
        run for run in ray.get(kept.get_train_runs.remote()).values() if run.name == "wild/best"
    )
    assert run.status == "ERRORED"
    assert run.run_settings.train_loop_config["learner.inner_lr"] == 1e4


def workers_of(number: int) -> ResourceRequest:
    return ResourceRequest("training", "train.workers", number, {"CPU": 1.0, "GPU": 0.0})


def test_workers_that_can_never_start_are_refused() -> None:
    with pytest.raises(
        UserError,
        match=r"train.workers: expected room for 9 at 1 CPU and 0 GPU each, got room for 4",
    ):
        ensure_resources(workers_of(9), wait_s=0)


def test_growing_clusters_are_asked_until_enough(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another search's asking takes the place of this one's; and what is asked for would outlive the process."""
    from raymtl.distributed import trainer as training

    asked: list[int] = []
    monkeypatch.setattr(training, "request_resources", lambda bundles: asked.append(len(bundles)))
    monkeypatch.setattr(training, "machines", lambda: [{"CPU": 2.0}] * (1 if len(asked) < 3 else 2))
    monkeypatch.setattr(training, "ASK_AGAIN_S", 0.0)
    monkeypatch.setattr("raymtl.distributed.trainer.time.sleep", lambda seconds: None)
    ensure_resources(workers_of(4), wait_s=60)
    assert asked == [4, 4, 4, 0]
    with pytest.raises(UserError, match=r"train.workers: expected room for 9"):
        ensure_resources(workers_of(9), wait_s=0.05)
    assert asked[-2:] == [9, 0]
    ensure_resources(workers_of(2), wait_s=60)
    assert asked[-1] == 0


def test_too_small_clusters_end_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault of this package does not."""
    from ray.exceptions import RayActorError
    from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

    from raymtl.pipeline import pipeline

    seen: Any = SimpleNamespace(
        show=lambda *row: None, say=print, on_trial_start=lambda *about: None
    )
    for error, says in (
        (
            ControllerError(TimeoutError("not within 60 s")),
            r"its workers found no room \(not within 60 s\)\. When",
        ),
        (
            WorkerGroupError("they died", {0: RayActorError()}),
            "lost more often than train.max_failures allows",
        ),
        (WorkerGroupError("a bug", {0: RayActorError(), 1: KeyError("a bug")}), None),
    ):

        def given_up(*settings: object, error: Exception = error, **more: object) -> None:
            raise error

        monkeypatch.setattr(pipeline, "train", given_up)
        unused: Any = None  # the arrays
        with pytest.raises(UserError if says else WorkerGroupError, match=says):
            pipeline._train_best(experiment(), tmp_path, unused, seen, seen)


def test_addresses_of_other_programs_are_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from raymtl.distributed import connection

    monkeypatch.setattr(connection, "ANSWER_S", 1.0)
    with (
        socket.create_server(("127.0.0.1", 0)) as other,
        pytest.raises(
            UserError,
            match=r"cannot reach Ray at 127\.0\.0\.1:\d+ \(something listens there that is not",
        ),
    ):
        check_address(f"127.0.0.1:{other.getsockname()[1]}")
    monkeypatch.undo()
    check_address(ray.get_runtime_context().gcs_address)


def test_a_machine_is_leaving_once_ray_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_machine_preempted()
    here = ray.get_runtime_context().get_node_id()
    monkeypatch.setattr(
        ray._private.state.state, "get_draining_nodes", lambda: {"another": 0, here: 7}
    )
    assert is_machine_preempted()


def test_one_machine_is_watched_without_an_actor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray Train's own answer would need the actor, and all workers."""
    monkeypatch.setenv(PREEMPTION_WATCHER, "0")
    monkeypatch.setattr(ray.train, "get_preemption_info", lambda: 1 / 0)
    leaving: dict[str, int] = {}
    monkeypatch.setattr(ray._private.state.state, "get_draining_nodes", lambda: leaving)
    assert not trainer._is_preempted()
    leaving[ray.get_runtime_context().get_node_id()] = 7
    assert trainer._is_preempted()


def test_a_start_that_times_out_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(**_: object) -> None:
        raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(ray, "init", start)
    monkeypatch.setenv(PREEMPTION_WATCHER, "1")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(UserError, match=r"does not start on this machine \(The current node timed"):
        start_ray(None)


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("127.0.0.1:1", r"127\.0\.0\.1:1 \(Connection refused\)"),
        ("127.0.0.1:99999", r"127\.0\.0\.1:99999 \(expected HOST:PORT, ray://HOST:PORT or auto\)"),
        ("somewhere", r"somewhere \(expected HOST:PORT"),
    ],
)
def test_dead_addresses_are_one_sentence(
    address: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is made, in a process that has no Ray yet."""
    from raymtl.cli.run import train as command

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(UserError, match=f"--address: cannot reach Ray at {says}"):
        start_ray(address)
    experiment(output=str(tmp_path / "runs")).save(tmp_path / "mine.yaml")
    with pytest.raises(UserError, match="--address: cannot reach Ray"):
        command(tmp_path / "mine.yaml", address=address)
    assert not (tmp_path / "runs").exists()
