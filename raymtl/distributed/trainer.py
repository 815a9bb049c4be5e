"""Ray Train around the loop: TorchTrainer, shards of Ray Data, metrics of the cluster."""

import math
import os
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import ray
import ray.data
import ray.train
import torch
from ray.autoscaler.sdk import request_resources
from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import ControllerError

from raymtl.cluster.capacity import Capacity, ResourceRequest
from raymtl.cluster.doctor.check import first_line
from raymtl.cluster.doctor.node_probe import machines
from raymtl.config import Experiment
from raymtl.data.tables.shuffle_buffer import read_carefully
from raymtl.distributed import PREEMPTION_WATCHER
from raymtl.distributed.carried import carry
from raymtl.distributed.elastic import STOP_REQUEST, CheckpointBeforeShutdown
from raymtl.distributed.feed import Feed, FeedSettings
from raymtl.distributed.step_shards import StepShards
from raymtl.internals import ray as ray_internals
from raymtl.reporting.ray_metrics import observer
from raymtl.schema.distributions import searched_values
from raymtl.step.workers import Workers
from raymtl.storage import fence
from raymtl.training.context import TrainContext
from raymtl.training.loop import train_loop
from raymtl.types import DivergedError, UserError

ASK_AGAIN_S = 10.0
"""How often an autoscaling cluster is asked while it grows: another search's asking takes the place
of this one's.
"""

LOOK_S = 60.0
"""How often an elastic training looks whether there is room for more workers."""

START_TIMEOUT = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"


START_S = 60.0
"""Ray's own value of that."""

REPLACED_S = 900.0
"""How long there is, at least, for a machine to come in the place of one that was lost: it may have
to be set up.
"""

ELASTIC_START_S = 25.0
"""How long an elastic training waits for workers on machines that, as Ray sees every 20 s, may be
gone.
"""


class TrainerSpec(NamedTuple):
    """How Ray Train runs a training."""

    name: str
    """What Ray calls it."""
    ray_folder: Path
    """Where Ray keeps its own records of the run."""
    workers: int
    """The number of workers; with `min_workers` the largest one."""
    cpus: float
    """CPUs of each worker."""
    gpus: float
    """GPUs of each worker."""
    min_workers: int | None = None
    """Train on as many workers as fit, but at least this many; None: on exactly `workers`."""
    callbacks: tuple[Any, ...] = ()
    builders: int | Literal["auto"] = 0
    """How many processes build the episodes for the workers, as `data.builders` says it."""

    @property
    def is_elastic(self) -> bool:
        """Whether the number of workers may change."""
        return self.min_workers is not None and self.min_workers < self.workers

    @property
    def bundle(self) -> dict[str, float]:
        """The resources of each worker, in Ray's names."""
        return bundle_of(self.cpus, self.gpus)


def bundle_of(cpus: float, gpus: float) -> dict[str, float]:
    """Resources in Ray's names. There is no entry for zero GPUs, which Ray sometimes refuses."""
    if gpus:
        return {"CPU": cpus, "GPU": gpus}
    return {"CPU": cpus}


def current_capacity() -> Capacity:
    """The resources of the cluster's machines at this moment. Ray must be connected."""
    return Capacity(machines())


def ensure_resources(request: ResourceRequest, wait_s: float) -> None:
    """Waits until the cluster has room for all bundles of the request at the same time.

    An autoscaling cluster is asked to grow and has `wait_s` to do so. Raises UserError if there is
    no room then.
    """
    cpus, gpus = request.bundle["CPU"], request.bundle.get("GPU", 0)
    asked = -math.inf
    until = time.monotonic() + wait_s
    try:
        while (room := current_capacity().count_fitting(request.bundle)) < request.num_bundles:
            now = time.monotonic()
            if now >= until:
                have = ray.cluster_resources()
                raise UserError(
                    f"{request.key}: expected room for {request.num_bundles} at {cpus:g} CPU and "
                    f"{gpus:g} GPU each, got room for {room} in a cluster of "
                    f"{have.get('CPU', 0):g} CPU and {have.get('GPU', 0):g} GPU. Lower it or what "
                    "each takes, or on a cluster that grows set train.wait_for_nodes_s."
                )
            if now - asked >= ASK_AGAIN_S:
                request_resources(bundles=[bundle_of(cpus, gpus)] * request.num_bundles)
                asked = now
            time.sleep(1)
    finally:
        # Whatever takes the room asks for it by itself. This request would outlive the process if
        # the process were killed.
        if asked > -math.inf:
            request_resources(bundles=[])


def train(
    experiment: Experiment, arrays: "ray.ObjectRef[Any]", folder: Path, spec: TrainerSpec
) -> None:
    """Meta-trains on Ray Train workers; the first writes the model folder.

    Ray shows the searched values under their dotted names. A second call with the same `folder` and
    `spec` resumes from the last checkpoint. Errors of the workers are raised here.
    """
    if spec.is_elastic:
        os.environ.setdefault(START_TIMEOUT, str(ELASTIC_START_S))
    trainer = TorchTrainer(
        _worker,
        train_loop_config={
            **searched_values(experiment.search, experiment.flat()),  # for whoever looks at it
            "name": spec.name,
            "experiment": carry(experiment),
            "arrays": arrays,
            "folder": str(folder),
            "builders": spec.builders,
        },
        scaling_config=_scaling(spec),
        torch_config=TorchConfig(backend="nccl" if spec.gpus >= 1 else "gloo"),
        datasets={"ids": ray.data.range(experiment.train.steps)},
        dataset_config=StepShards(experiment.train.steps),
        run_config=_run_config(spec, experiment),
    )
    try:
        with _interrupts_as_before():
            trainer.fit()
    except ray.train.TrainingFailedError as error:
        answer = _answer(error)
        if answer is None:
            raise
        raise answer from None


@contextmanager
def _interrupts_as_before() -> Iterator[None]:
    """Gives Ctrl-C back afterwards to whoever had it: Ray Train takes it in the main thread, and
    keeps it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def _scaling(spec: TrainerSpec) -> ScalingConfig:
    num_workers: Any = spec.workers
    if spec.is_elastic:
        num_workers = (spec.min_workers, spec.workers)
    return ScalingConfig(  # type: ignore[call-arg] # mypy reads Ray Train 1, Ray runs 2
        num_workers=num_workers,
        elastic_resize_monitor_interval_s=LOOK_S,
        use_gpu=spec.gpus > 0,
        resources_per_worker=spec.bundle,
    )


def _run_config(spec: TrainerSpec, experiment: Experiment) -> RunConfig:
    before_shutdown = ray_internals.controller_callbacks(CheckpointBeforeShutdown())
    return RunConfig(  # type: ignore[call-arg] # mypy reads Ray Train 1, Ray runs 2
        name=spec.name,
        storage_path=str(spec.ray_folder),
        failure_config=_failure(experiment),
        logging_config=LoggingConfig(log_level="ERROR"),
        callbacks=[*spec.callbacks, *before_shutdown],
    )


def _failure(experiment: Experiment) -> FailureConfig:
    """Bounds how often workers are lost, and how long a lost machine may take to be replaced."""
    start_s = float(os.environ.get(START_TIMEOUT, START_S))
    patience_s = max(REPLACED_S, experiment.train.wait_for_nodes_s)
    max_failures = experiment.train.max_failures
    return FailureConfig(  # type: ignore[call-arg] # mypy reads Ray Train 1, Ray runs 2
        max_failures=max_failures,
        # A start for which there is no room counts as one.
        controller_failure_limit=max_failures + math.ceil(patience_s / start_s),
    )


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
    """Which resources the cluster lacked; None if the training failed for another reason."""
    if isinstance(error, ControllerError):
        return f"its workers found no room ({first_line(error.controller_failure)})"
    failures = getattr(error, "worker_failures", {}).values()
    lost = ray_internals.lost_worker_errors()
    if failures and all(isinstance(failure, lost) for failure in failures):
        reason = first_line(next(iter(failures)))
        return f"its workers were lost more often than train.max_failures allows ({reason})"
    return None


def _worker(settings: dict[str, Any]) -> None:
    """One Ray Train worker."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    experiment = settings["experiment"].unpack()
    arrays = ray.get(settings["arrays"])
    folder = Path(settings["folder"])
    if fence.newest(folder):
        read_carefully()  # an attempt before has ended, and may have been killed by a picture
    group = ray.train.get_context()
    workers = Workers(group.get_world_rank(), group.get_world_size())
    device = ray.train.torch.get_device()
    if device.type == "cpu":
        assigned = ray.get_runtime_context().get_assigned_resources().get("CPU", 1)
        torch.set_num_threads(max(1, int(assigned)))

    log_step = observer(settings["name"], experiment.data.task_names)
    # No checkpoint goes through Ray: the loop keeps its own in the run folder, with checksums, and
    # goes on from them.
    context = TrainContext(
        ray.train.report,
        log_step,
        workers,
        device,
        _is_preempted,
        STOP_REQUEST.confirm_saved,
        STOP_REQUEST.register_emergency_hook,
    )
    feed_settings = FeedSettings(experiment, arrays, settings["arrays"], folder)
    feed = Feed(feed_settings, settings["builders"], workers, device)
    train_loop(experiment, arrays, feed, context, folder)


def is_machine_preempted() -> bool:
    """Whether Ray was told that the machine of this process is about to be taken back."""
    return ray.get_runtime_context().get_node_id() in ray_internals.draining_nodes()


def _is_preempted() -> bool:
    if STOP_REQUEST.is_requested:
        return True
    if os.environ.get(PREEMPTION_WATCHER) == "0":
        return is_machine_preempted()
    return ray.train.get_preemption_info() is not None
