"""All private names of Ray that the package uses: what each is for, and what is lost without it.

Ray may move such a name in any minor release. So `pyproject.toml` pins Ray below the next one, and
`tests/internals/test_ray.py` looks for every name in `PRIVATE_NAMES`. All of them were tested with
Ray 2.60.

Ray is imported inside of the functions. Every layer may therefore import this module, also where
Ray is not installed, and `raymtl.distributed` sets Ray's environment before Ray reads it.
"""

import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import reduce
from importlib import import_module
from importlib.metadata import version
from typing import Any, NamedTuple, Protocol

from raymtl.types import UserError

logger = logging.getLogger("raymtl")

_reported: set[str] = set()
"""Paths of the names whose absence this process has logged."""


class PrivateName(NamedTuple):
    """A name of Ray that is not part of its public interface."""

    path: str
    """MODULE:ATTRIBUTE, where ATTRIBUTE may be dotted."""
    purpose: str
    """What raymtl does with it, as the end of a sentence."""
    without: str
    """What happens where Ray has no such name, as the end of a sentence."""

    def find(self) -> Any:
        """The object; None where Ray has no such name, which is logged once in each process."""
        module, _, attribute = self.path.partition(":")
        try:
            return reduce(getattr, attribute.split("."), import_module(module))
        except (ImportError, AttributeError):
            if self.path not in _reported:
                _reported.add(self.path)
                logger.warning("%s", self.explain())
            return None

    def require(self) -> Any:
        """The object. Raises UserError where Ray has no such name."""
        found = self.find()
        if found is None:
            raise UserError(self.explain())
        return found

    def explain(self) -> str:
        """The sentence that is logged where the name is missing."""
        return (
            f"ray: expected version 2.60, got {version('ray')} without {self.path}, which raymtl "
            f"uses to {self.purpose}; without it {self.without}. Install ray 2.60."
        )


GCS_CLIENT = PrivateName(
    "ray._raylet:GcsClient",
    "ask an address whether Ray answers there, and to report a preempted machine",
    "an address of another program is noticed after minutes, and preemption is not reported",
)
DRAIN_REASON = PrivateName(
    "ray.core.generated.autoscaler_pb2:DrainNodeReason",
    "report a preempted machine",
    "preemption is not reported",
)
AUTHENTICATION_MODE = PrivateName(
    "ray._raylet:get_authentication_mode",
    "check that every node asks for a token",
    "`raymtl doctor` cannot tell whether the nodes ask for one",
)
TOKEN_MODE = PrivateName(
    "ray._raylet:AuthenticationMode.TOKEN",
    "check that every node asks for a token",
    "`raymtl doctor` cannot tell whether the nodes ask for one",
)
DRAINING_NODES = PrivateName(
    "ray._private.state:state.get_draining_nodes",
    "notice that the machine of a process is about to be taken away",
    "a trial repeats the steps since its last regular checkpoint when its machine is taken away",
)
HEALTH_CHECK_FAILED = PrivateName(
    "ray.train.v2._internal.exceptions:WorkerHealthCheckFailedError",
    "tell a lost worker from a fault of the training",
    "a training whose workers are lost too often ends with a traceback",
)
HEALTH_CHECK_TIMEOUT = PrivateName(
    "ray.train.v2._internal.exceptions:WorkerHealthCheckTimeoutError",
    "tell a lost worker from a fault of the training",
    "a training whose workers are lost too often ends with a traceback",
)
CONTROLLER_CALLBACK = PrivateName(
    "ray.train.v2._internal.execution.callback:ControllerCallback",
    "have workers write a checkpoint before they are ended",
    "the steps since the last regular checkpoint are repeated",
)
WORKER_GROUP_CALLBACK = PrivateName(
    "ray.train.v2._internal.execution.callback:WorkerGroupCallback",
    "have workers write a checkpoint before they are ended",
    "the steps since the last regular checkpoint are repeated",
)
RESIZING_STATE = PrivateName(
    "ray.train.v2._internal.execution.controller.state:ResizingState",
    "have workers write a checkpoint before their number changes",
    "the steps since the last regular checkpoint are repeated",
)
POLL_WORKERS = PrivateName(
    "ray.train.v2._internal.execution.worker_group.worker_group:"
    "WorkerGroup._poll_workers_and_collect_errors",
    "find the workers that still run when one was lost",
    "the steps since the last regular checkpoint are repeated",
)
ACTOR_TASK_FAILED = PrivateName(
    "ray.air.execution._internal.actor_manager:RayActorManager._actor_task_failed",
    "have a search go on when Ray ends one trial for its memory",
    "such a trial ends the whole search",
)
TUNE_LOGGER = PrivateName(
    "ray.tune.execution.tune_controller:logger",
    "report a lost trial in one line",
    "Tune logs a traceback for each lost trial",
)
PREPARE_CONFIG = PrivateName(
    "ray.autoscaler._private.util:prepare_config",
    "read a cluster file as `ray up` does",
    "cluster files cannot be checked",
)
VALIDATE_CONFIG = PrivateName(
    "ray.autoscaler._private.util:validate_config",
    "check a cluster file as `ray up` does",
    "cluster files cannot be checked",
)
START_PARAMETERS = PrivateName(
    "ray._private.parameter:RayParams",
    "start Ray on this machine without the process that sends logs to the driver",
    "that process runs beside the training for nothing",
)
FRAMEWORK_VERSION = PrivateName(
    "ray.train.v2._internal.callbacks.state_manager:_get_framework_version",
    "spare the process that keeps the dashboard's rows of Ray Train an import of torch",
    "a training takes 2 s more to start",
)
PRIVATE_NAMES = (
    GCS_CLIENT,
    DRAIN_REASON,
    AUTHENTICATION_MODE,
    TOKEN_MODE,
    DRAINING_NODES,
    HEALTH_CHECK_FAILED,
    HEALTH_CHECK_TIMEOUT,
    CONTROLLER_CALLBACK,
    WORKER_GROUP_CALLBACK,
    RESIZING_STATE,
    POLL_WORKERS,
    ACTOR_TASK_FAILED,
    TUNE_LOGGER,
    PREPARE_CONFIG,
    VALIDATE_CONFIG,
    START_PARAMETERS,
    FRAMEWORK_VERSION,
)


def connect_to_gcs(address: str) -> None:
    """Returns once Ray's control service answers at HOST:PORT, or refuses the connection.

    It waits indefinitely where something listens at the address that is not Ray's. `ray.init` has
    no time limit there.
    """
    client = GCS_CLIENT.find()
    if client is not None:
        client(address=address)


def report_preemption(seconds_left: float) -> tuple[bool, str]:
    """Tells Ray, which is connected, that this machine will be taken away after so many seconds.

    Ray has no public call for it. Returns whether Ray accepts that, and its reason where it does
    not. Raises UserError where this version of Ray cannot be told.
    """
    import ray

    reasons, client = DRAIN_REASON.require(), GCS_CLIENT.require()
    context = ray.get_runtime_context()
    accepted, reason = client(address=context.gcs_address).drain_node(
        context.get_node_id(),
        reasons.Value("DRAIN_NODE_REASON_PREEMPTION"),
        "the cloud takes this machine",
        int((time.time() + seconds_left) * 1000),
    )
    return bool(accepted), str(reason)


def token_probe() -> Callable[[], bool | None]:
    """A function that a node runs: whether Ray asks for a token there; None where Ray cannot tell.

    The function is made in here so that it is sent whole: a node without raymtl can run it too.
    """
    mode_path, token_path = AUTHENTICATION_MODE.path, TOKEN_MODE.path

    def asks_for_token() -> bool | None:
        from functools import reduce
        from importlib import import_module

        found: list[Any] = []
        for path in (mode_path, token_path):
            module, _, attribute = path.partition(":")
            try:
                found.append(reduce(getattr, attribute.split("."), import_module(module)))
            except (ImportError, AttributeError):
                return None  # the node has another version of Ray, which another check reports
        get_mode, token = found
        return bool(get_mode() == token)

    return asks_for_token


def draining_nodes() -> Collection[str]:
    """Ids of the nodes that Ray was told to drain, in the cluster that this process belongs to.

    `ray.train.get_preemption_info` tells the same, but only to the workers of Ray Train.
    """
    get = DRAINING_NODES.find()
    if get is None:
        return ()
    nodes: Mapping[str, int] = get()
    return nodes.keys()


def lost_worker_errors() -> tuple[type[Exception], ...]:
    """The errors that Ray Train keeps for a worker whose process or machine is gone."""
    from ray.exceptions import RayActorError

    unhealthy = (HEALTH_CHECK_FAILED.find(), HEALTH_CHECK_TIMEOUT.find())
    return (RayActorError, *(error for error in unhealthy if error is not None))


@contextmanager
def without_log_monitor() -> Iterator[None]:
    """Within it `ray.init` starts no process that reads logs for the driver, which shows none.

    The dashboard reads the logs by another process.
    """
    from functools import partial

    original = START_PARAMETERS.find()
    if original is None:
        yield
        return
    from ray._private import parameter

    parameter.RayParams = partial(original, include_log_monitor=False)  # type: ignore[misc, assignment]
    try:
        yield
    finally:
        parameter.RayParams = original  # type: ignore[misc]


def framework_versions(framework: Any) -> dict[str, str]:
    """The versions of Ray and of a framework, as the dashboard shows them.

    A worker runs this. The version of torch is an object of torch, so whoever reads the answer of
    Ray's own function imports torch.
    """
    find = FRAMEWORK_VERSION.find()
    if find is None:
        return {}
    return {name: str(value) for name, value in find(framework).items()}


class GroupObserver(Protocol):
    """Is called by Ray Train's controller, in the controller's process."""

    def on_group_start(self, worker_group: Any) -> None:
        """A group of workers has started."""

    def before_resize(self) -> None:
        """The controller is about to end the group in order to start one of another size."""

    def before_group_shutdown(self, worker_group: Any) -> None:
        """The controller is about to end the group."""


def controller_callbacks(observer: GroupObserver) -> tuple[Any, ...]:
    """Callbacks of a Ray Train run that call the observer; none where Ray has no such callbacks.

    The public `UserCallback` is not called before a group is ended.
    """
    bases = (CONTROLLER_CALLBACK.find(), WORKER_GROUP_CALLBACK.find())
    resizing_state = RESIZING_STATE.find()
    if None in bases or resizing_state is None:
        return ()

    class Callback(*bases):  # type: ignore[misc] # found while it runs
        def after_controller_start(self, train_run_context: Any) -> None:
            if FRAMEWORK_VERSION.find() is not None:
                from ray.train.v2._internal.callbacks import state_manager

                state_manager._get_framework_version = framework_versions

        def after_worker_group_start(self, worker_group: Any) -> None:
            observer.on_group_start(worker_group)

        def before_worker_group_shutdown(self, worker_group: Any) -> None:
            observer.before_group_shutdown(worker_group)

        def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
            if isinstance(current_state, resizing_state):
                observer.before_resize()

    return (Callback(),)


def running_workers(worker_group: Any, timeout_s: float) -> Sequence[Any]:
    """The workers of a Ray Train group whose training still runs.

    The group's `poll_status` would also call callbacks that have ended before the group does.
    """
    if POLL_WORKERS.find() is None:
        return ()
    statuses = worker_group._poll_workers_and_collect_errors(timeout_s)
    pairs = zip(worker_group.get_workers(), statuses, strict=True)
    return [worker for worker, status in pairs if status.running]


@contextmanager
def translated_task_errors(translate: Callable[[Exception], Exception]) -> Iterator[None]:
    """Within it Ray Tune is given `translate(error)` for each error of a trial's process.

    Tune ends the whole search for errors that it does not know, and offers no hook for them.
    """
    original = ACTOR_TASK_FAILED.find()
    if original is None:
        yield
        return
    from ray.air.execution._internal.actor_manager import RayActorManager

    def failed(self: RayActorManager, tracked_actor_task: Any, exception: Exception) -> None:
        original(self, tracked_actor_task=tracked_actor_task, exception=translate(exception))

    RayActorManager._actor_task_failed = failed  # type: ignore[method-assign] # no hook
    try:
        yield
    finally:
        RayActorManager._actor_task_failed = original  # type: ignore[method-assign] # no hook


def tune_logger() -> logging.Logger:
    """The logger by which Ray Tune reports a failed trial, with the whole traceback."""
    found: logging.Logger | None = TUNE_LOGGER.find()
    if found is None:
        return logging.getLogger("ray.tune")
    return found


def prepared_cluster_file(config: dict[str, Any]) -> dict[str, Any]:
    """A cluster file with the defaults that `ray up` adds; Ray has no public call to check one.

    Raises whatever Ray and jsonschema raise for a file that `ray up` refuses.
    """
    prepared: dict[str, Any] = PREPARE_CONFIG.require()(config)
    VALIDATE_CONFIG.require()(prepared)
    return prepared
