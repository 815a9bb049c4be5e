"""Ray Train around the loop: TorchTrainer, shards of Ray Data, checkpoints, metrics of the cluster."""

import contextlib
import logging
import math
import os
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    # At the default of 2 s reports are throttled to one in 2 s, and a killed worker loses a committed checkpoint.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # Without it the dashboard knows of no run of Ray Train.
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",
    # Workers would run at nice 15, behind everything else on the machine.
    "RAY_worker_niceness": "0",
}
for _key, _value in QUIET.items():  # Ray reads them when it is imported
    os.environ.setdefault(_key, _value)

import ray  # noqa: E402
import ray.data  # noqa: E402
import ray.train  # noqa: E402
import torch  # noqa: E402
from ray._raylet import GcsClient  # type: ignore[attr-defined]  # noqa: E402
from ray.autoscaler.sdk import request_resources  # noqa: E402
from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig  # noqa: E402
from ray.train.torch import TorchConfig, TorchTrainer  # noqa: E402
from ray.train.v2._internal.exceptions import (  # noqa: E402
    WorkerHealthCheckFailedError,
    WorkerHealthCheckTimeoutError,
)
from ray.train.v2.api.exceptions import ControllerError  # noqa: E402
from ray.util.metrics import Gauge  # noqa: E402

from raymtl.cluster import machines, refusal, resolve  # noqa: E402
from raymtl.cluster.checks import first_line  # noqa: E402
from raymtl.cluster.room import gpus_for, slots  # noqa: E402
from raymtl.collective import Workers  # noqa: E402
from raymtl.config import Experiment  # noqa: E402
from raymtl.data.stream import BuildEpisodes, BuildParts, streamed  # noqa: E402
from raymtl.ids import Shares  # noqa: E402
from raymtl.loop import Host, train_loop  # noqa: E402
from raymtl.resizing import PAUSE, KeepBeforeTheEnd  # noqa: E402
from raymtl.search import searched_values  # noqa: E402
from raymtl.types import DivergedError, UserError  # noqa: E402

LOST = (ray.exceptions.RayActorError, WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError)
"""What Ray Train says of a worker whose process or machine is gone."""
ANSWER_S = 20.0
"""How long Ray may take to answer at an address where something listens."""
ASK_AGAIN_S = 10.0
"""How often an autoscaling cluster is asked while it grows: another search's asking takes the place of this one's."""
LOOK_S = 60.0
"""How often an elastic training looks whether there is room for more workers."""
START_TIMEOUT = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
START_S = 60.0
"""Ray's own value of that."""
REPLACED_S = 900.0
"""How long there is, at least, for a machine to come in the place of one that was lost: it may have to be set up."""
ELASTIC_START_S = 25.0
"""How long an elastic training waits for workers on machines that, as Ray sees every 20 s, may be gone."""


def start_ray(address: str | None) -> None:
    """Connects to `address` or `RAY_ADDRESS`, else starts Ray on this machine. Raises UserError."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="ray|torch.distributed")
    check_address(address)
    address = resolve(address)
    try:
        ray.init(
            address=address or "local",
            logging_level=logging.ERROR,
            log_to_driver=False,
            runtime_env={"env_vars": QUIET} if address else None,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        if address is None:
            raise UserError(
                f"Ray does not start on this machine ({first_line(error)}). Ask `raymtl doctor` why."
            ) from None
        raise _unreachable(address, first_line(error)) from None


def check_address(address: str | None) -> None:
    """Raises UserError where nothing listens at `address` or `RAY_ADDRESS`."""
    address = resolve(address)
    reason = (refusal(address) or _silence(address)) if address else None
    if address and reason:
        raise _unreachable(address, reason)


def _silence(address: str) -> str | None:
    """What there is instead of Ray, which `ray.init` would try to talk to for minutes; None where Ray answers."""
    if "://" in address or address == "auto":
        return None
    answered = threading.Event()

    def ask() -> None:
        with contextlib.suppress(Exception):  # another version, or no token: ray.init says that
            GcsClient(address=address)
        answered.set()

    threading.Thread(target=ask, daemon=True).start()
    return (
        None if answered.wait(ANSWER_S) else f"something listens there that is not Ray's, or not after {ANSWER_S:g} s"
    )


def _unreachable(address: str, reason: str) -> UserError:
    return UserError(
        f"--address: cannot reach Ray at {address} ({reason}). Start the cluster, or leave --address and RAY_ADDRESS "
        "away to start Ray here."
    )


def gpus_per_worker(experiment: Experiment, workers: int) -> int:
    """1 where the configuration wants GPUs, or lets them be used and the cluster has one for each of the workers."""
    return gpus_for(experiment, [ray.cluster_resources()], workers)


def ensure_resources(workers: int, cpus: float, gpus: float, *, key: str, wait_s: int) -> None:
    """Returns when the cluster has room for the workers of configuration key `key`, together.

    An autoscaling cluster is asked for them and given `wait_s`. Raises UserError where they do not come.
    """
    asked = -math.inf
    until = time.monotonic() + wait_s
    try:
        while (room := slots(machines(), cpus, gpus)) < workers:
            now = time.monotonic()
            if now >= until:
                have = ray.cluster_resources()
                raise UserError(
                    f"{key}: expected room for {workers} at {cpus:g} CPU and {gpus:g} GPU each, got room for {room} in "
                    f"a cluster of {have.get('CPU', 0):g} CPU and {have.get('GPU', 0):g} GPU. Lower it or what each "
                    "takes, or on a cluster that grows set train.wait_for_nodes_s."
                )
            if now - asked >= ASK_AGAIN_S:
                request_resources(bundles=[{"CPU": cpus} | ({"GPU": gpus} if gpus else {})] * workers)
                asked = now
            time.sleep(1)
    finally:
        # What takes the room asks for it by itself; and this would outlive the process, should that be killed.
        if asked > -math.inf:
            request_resources(bundles=[])


def observer(run: str, task_names: tuple[str, ...]) -> Callable[[Mapping[str, float | None]], None]:
    """Puts the numbers of every step, and its scores, into Ray's metrics, tagged by run (and task or score)."""
    tags = {"run": run}
    plain = {name: Gauge(f"raymtl_{name}", description=f"{name} of the outer step", tag_keys=("run",)) for name in
             ("step", "lr", "grad_norm", "seconds", "data_wait_pct", "communication_pct")}  # fmt: skip
    loss = Gauge("raymtl_loss", description="query loss of a task", tag_keys=("run", "task"))
    weight = Gauge("raymtl_weight", description="weight of a task", tag_keys=("run", "task"))
    score = Gauge("raymtl_score", description="score on the validation split", tag_keys=("run", "score"))

    def observe(row: Mapping[str, float | None]) -> None:
        for name, gauge in plain.items():
            gauge.set(row[name], tags)
        for task in task_names:
            if row[f"loss.{task}"] is not None:
                loss.set(row[f"loss.{task}"], tags | {"task": task})
            weight.set(row[f"weight.{task}"], tags | {"task": task})
        for name, value in row.items():
            if name.startswith("val.") and value is not None:
                score.set(value, tags | {"score": name})

    return observe


def train(
    experiment: Experiment,
    arrays: "ray.ObjectRef[Any]",
    folder: Path,
    *,
    name: str,
    ray_folder: Path,
    workers: int,
    cpus: float,
    gpus: float,
    fewest: int | None = None,
    callbacks: tuple[Any, ...] = (),
) -> None:
    """Meta-trains on Ray Train workers; the first writes the model folder.

    With `fewest`, it trains on as many of `workers` as there is room for, but no fewer than these. Ray knows it as
    `name`, and by its searched values under their dotted names. The same `folder`, `name` and `ray_folder` again go on
    from the last checkpoint. Raises what the workers raise.
    """
    elastic = fewest is not None and fewest < workers
    if elastic:
        os.environ.setdefault(START_TIMEOUT, str(ELASTIC_START_S))
    start_s = float(os.environ.get(START_TIMEOUT, START_S))
    patience_s = max(REPLACED_S, experiment.train.wait_for_nodes_s)
    trainer = TorchTrainer(
        _worker,
        train_loop_config={
            **searched_values(experiment.search, experiment.flat()),  # for whoever looks at it
            "name": name,
            "experiment": experiment.model_dump(mode="json"),
            "arrays": arrays,
            "folder": str(folder),
        },
        # mypy reads the signatures of the first version of Ray Train here, Ray runs the second.
        scaling_config=ScalingConfig(  # type: ignore[call-arg]
            num_workers=(fewest, workers) if elastic else workers,  # type: ignore[arg-type]
            elastic_resize_monitor_interval_s=LOOK_S,
            use_gpu=gpus > 0,
            resources_per_worker={"CPU": cpus} | ({"GPU": gpus} if gpus else {}),
        ),
        torch_config=TorchConfig(backend="nccl" if gpus >= 1 else "gloo"),
        datasets={"ids": ray.data.range(experiment.train.steps)},
        dataset_config=Shares(experiment.train.steps),
        run_config=RunConfig(  # type: ignore[call-arg]
            name=name,
            storage_path=str(ray_folder),
            failure_config=FailureConfig(  # type: ignore[call-arg]
                max_failures=experiment.train.max_failures,
                # A start for which there is no room counts as one.
                controller_failure_limit=experiment.train.max_failures + math.ceil(patience_s / start_s),
            ),
            logging_config=LoggingConfig(log_level="ERROR"),
            callbacks=[*callbacks, KeepBeforeTheEnd()],  # type: ignore[list-item]
        ),
    )
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        answer = _answer(error)
        if answer is None:
            raise
        raise answer from None


def _answer(error: ray.train.TrainingFailedError) -> DivergedError | UserError | None:
    """What a worker raised that is an answer, such as diverging, and no failure of the cluster."""
    for failure in getattr(error, "worker_failures", {}).values():
        cause = failure.__cause__ or failure
        while isinstance(cause, ray.exceptions.RayTaskError):
            cause = cause.cause
        if isinstance(cause, DivergedError | UserError):
            return cause
    return None


def why_given_up(error: ray.train.TrainingFailedError) -> str | None:
    """What the cluster lacked; None where what failed is not the cluster."""
    if isinstance(error, ControllerError):
        return f"its workers found no room ({first_line(error.controller_failure)})"
    failures = getattr(error, "worker_failures", {}).values()
    if failures and all(isinstance(failure, LOST) for failure in failures):
        return f"its workers were lost more often than train.max_failures allows ({first_line(next(iter(failures)))})"
    return None


def _worker(settings: dict[str, Any]) -> None:
    """One Ray Train worker."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    experiment = Experiment.model_validate(settings["experiment"])
    arrays = ray.get(settings["arrays"])
    folder = Path(settings["folder"])
    context = ray.train.get_context()
    workers = Workers(context.get_world_rank(), context.get_world_size())
    device = ray.train.torch.get_device()
    if device.type == "cpu":
        assigned = ray.get_runtime_context().get_assigned_resources().get("CPU", 1)
        torch.set_num_threads(max(1, int(assigned)))

    def batches(first_step: int) -> Any:
        builds = {
            part.start: BuildEpisodes(own.data, arrays, own.seed, own.train.meta_batch, workers.size, first_step)
            for part in experiment.parts()
            for own in [part.experiment]
        }
        return streamed(ray.train.get_dataset_shard("ids"), BuildParts(builds))

    observe = observer(settings["name"], experiment.data.task_names)
    # No checkpoint goes through Ray: the loop keeps its own in the run folder, with checksums, and goes on from them.
    host = Host(ray.train.report, observe, workers, device, _leaving, PAUSE.kept, PAUSE.rescued_by)
    train_loop(experiment, arrays, batches, host, folder)


def machine_leaving() -> bool:
    """Whether the machine of this process is about to be taken away, as Ray was told."""
    return ray.get_runtime_context().get_node_id() in ray._private.state.state.get_draining_nodes()


def _leaving() -> bool:
    return ray.train.get_preemption_info() is not None or PAUSE.asked
