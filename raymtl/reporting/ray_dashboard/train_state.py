"""Trials of one process as runs of Ray Train, in the words that Ray Train keeps its own in.

Ray Train has its runs kept by an actor of the cluster, from which the dashboard's API answers;
trials of several workers are in there by themselves. These modules of Ray are private. They are the
ones of the pinned version, and only this file knows them.
"""

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ray
import ray._private.state
from ray.actor import ActorHandle
from ray.train.v2._internal.state import schema
from ray.train.v2._internal.state.state_actor import get_or_create_state_actor
from ray.train.v2._internal.state.util import current_time_ns, mark_workers_dead

from raymtl.storage import formats

STATUS = {
    "complete": schema.RunStatus.FINISHED,
    "pruned": schema.RunStatus.ABORTED,
    "failed": schema.RunStatus.ERRORED,
    "interrupted": schema.RunStatus.ABORTED,
    "restarting": schema.RunStatus.RESTARTING,
}
"""How a trial ended -> what Ray Train calls that."""


class _Known(NamedTuple):
    run: schema.TrainRun
    attempt: schema.TrainRunAttempt


class TrainRuns:
    """The trials of one run folder. A trial that is started again is a further attempt of the same
    run.
    """

    def __init__(self, folder: Path, max_failures: int) -> None:
        self.folder, self.max_failures = folder, max_failures
        self.begun = formats.read_json(folder / "environment.json")["started"]
        self.state = get_or_create_state_actor()
        self.known: dict[str, _Known] = {}

    def start(
        self,
        name: str,
        values: Mapping[str, Any],
        actor: ActorHandle,
        resources: Mapping[str, float],
    ) -> "list[ray.ObjectRef[None]]":
        """Tells that the actor runs the trial with these dotted values; returns what is done when
        Ray has it.
        """
        actor_id = actor._actor_id.hex()
        # Ray Train looks whether this actor lives: should the driver be killed, the trial does not
        # stay RUNNING.
        run = self._run(name, values, actor_id, resources)
        attempt = schema.TrainRunAttempt(
            run_id=run.id,
            attempt_id=uuid.uuid4().hex,
            status=schema.RunAttemptStatus.RUNNING,
            start_time_ns=run.start_time_ns,
            resources=[schema.TrainResources(resources=dict(resources))],
            workers=[_worker(actor_id, resources)],
        )
        self.known[name] = _Known(run, attempt)
        return self._tell(name)

    def place(self, name: str) -> str:
        """By which its actor, and that actor's log, are found on the dashboard."""
        (worker,) = self.known[name].attempt.workers
        return f"pid {worker.pid} on {worker.node_ip}"

    def end(self, name: str, state: str, detail: str) -> "list[ray.ObjectRef[None]]":
        """Tells how the trial ended, one of STATUS; returns what is done when Ray has it."""
        run, attempt = self.known[name]
        restarting = STATUS[state] == schema.RunStatus.RESTARTING
        run.status = STATUS[state]
        if restarting:
            attempt.status = schema.RunAttemptStatus.ERRORED
        else:
            attempt.status = schema.RunAttemptStatus(run.status.value)
        run.status_detail = attempt.status_detail = detail
        attempt.end_time_ns = current_time_ns()
        if restarting:
            run.end_time_ns = None
        else:
            run.end_time_ns = attempt.end_time_ns
        mark_workers_dead(attempt)
        told = self._tell(name)
        del self.known[name]
        return told

    def _tell(self, name: str) -> "list[ray.ObjectRef[None]]":
        run, attempt = self.known[name]
        return [
            self.state.create_or_update_train_run.remote(run),
            self.state.create_or_update_train_run_attempt.remote(attempt),
        ]

    def _run(
        self, name: str, values: Mapping[str, Any], actor_id: str, resources: Mapping[str, float]
    ) -> schema.TrainRun:
        shown = f"{self.folder.name}/{name}"
        options = schema.ExecutionOptions(
            resource_limits={},
            exclude_resources={},
            preserve_order=True,
            actor_locality_enabled=False,
            verbose_progress=False,
        )
        settings = schema.RunSettings(
            train_loop_config=dict(values),
            backend_config=schema.BackendConfig(framework=None, config={}),
            scaling_config=schema.ScalingConfig(
                num_workers=1,
                use_gpu=resources.get("GPU", 0) > 0,
                resources_per_worker=dict(resources),
                placement_strategy="PACK",
                use_tpu=False,
            ),
            datasets=[],
            data_config=schema.DataConfig(
                datasets_to_split=[],
                data_execution_options=schema.DataExecutionOptions(default=options),
                enable_shard_locality=False,
            ),
            run_config=schema.RunConfig(
                name=shown,
                failure_config=schema.FailureConfig(
                    max_failures=self.max_failures, controller_failure_limit=0
                ),
                worker_runtime_env={},
                checkpoint_config=schema.CheckpointConfig(checkpoint_score_order="max"),
                storage_path=str(self.folder),
            ),
        )
        return schema.TrainRun(
            # The same for a trial that goes on in a resumed search; never that of another run of
            # the same name.
            id=uuid.uuid5(uuid.NAMESPACE_URL, f"{self.folder.resolve()}/{name} {self.begun}").hex,
            name=shown,
            job_id=ray.get_runtime_context().get_job_id(),
            controller_actor_id=actor_id,
            status=schema.RunStatus.RUNNING,
            start_time_ns=current_time_ns(),
            framework_versions={"ray": ray.__version__},
            run_settings=settings,
        )


def _worker(actor_id: str, resources: Mapping[str, float]) -> schema.TrainWorker:
    where = ray._private.state.actors(actor_id)
    return schema.TrainWorker(
        world_rank=0,
        local_rank=0,
        node_rank=0,
        actor_id=actor_id,
        node_id=where["Address"]["NodeID"],
        node_ip=where["Address"]["IPAddress"],
        pid=where["Pid"],
        gpu_ids=[],  # which ones, the dashboard finds by the process
        status=schema.ActorStatus.ALIVE,
        resources=schema.TrainResources(resources=dict(resources)),
    )
