"""Whether the cluster has what a run will hold at the same time."""

from pathlib import Path

import ray

from raymtl.cluster.address import resolve
from raymtl.cluster.capacity import Capacity, ResourceRequest
from raymtl.cluster.doctor.local_checks import resources
from raymtl.cluster.doctor.node_probe import machines, survey
from raymtl.config import Experiment
from raymtl.distributed.connection import check_address
from raymtl.distributed.trainer import current_capacity, ensure_resources
from raymtl.reporting.terminal import View
from raymtl.schema.component_modules import Shipment, shipment
from raymtl.types import UserError

NOTICE_S = 60.0
"""Ray notices after about 65 s that a machine went silent, of which it waits 30 for its answers
here.
"""


def refuse(experiment: Experiment, address: str | None, *, searching: bool) -> None:
    """Raises UserError, before anything is made, where nothing listens or this machine, alone, has
    no room.
    """
    if ray.is_initialized():
        return  # of its machines, `ensure_machines` asks
    check_address(address)
    if resolve(address):
        return
    missing = Capacity([resources()]).shortfalls(experiment, searching=searching)
    if missing:
        raise UserError(f"{missing[0]} Or give --address of a cluster.")


def ensure_machines(experiment: Experiment, run: Path, view: View, *, searching: bool) -> None:
    """Waits for the machines that search and training will need, or refuses; then asks them all
    what they see.

    Where some went or came meanwhile, it does so again.
    """
    while True:
        _ensure_room(experiment, searching=searching)
        number = len(machines())
        if number > 1:
            view.say(f"asking {number} machines what they see")
            for check in survey(run, NOTICE_S):
                if check.ok is False:
                    raise UserError(f"{check.name}: {check.found}. {check.advice}")
        if len(machines()) == number:
            return


def check_components() -> None:
    """Raises UserError where a process of Ray's cannot import the user's own components."""
    own = shipment()
    if not own.modules and not own.classes:
        return
    try:
        ray.get(_unpack.options(num_cpus=0).remote(own))
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise


@ray.remote
def _unpack(components: Shipment) -> None:
    components.unpack()


def _ensure_room(experiment: Experiment, *, searching: bool) -> None:
    """Returns when the cluster has room for all that will be held at the same time.

    Raises UserError if it has not.
    """
    wait_s = experiment.train.wait_for_nodes_s
    if searching:
        ensure_resources(_search_request(experiment), wait_s)
    ensure_resources(current_capacity().training_request(experiment), wait_s)
    if wait_s:
        return  # an autoscaling cluster starts what is still missing later
    missing = current_capacity().shortfalls(experiment, searching=searching)
    if missing:
        raise UserError(missing[0])


def _search_request(experiment: Experiment) -> ResourceRequest:
    """What the search needs whatever machines come: all trials of `tune.concurrency` where an
    autoscaling cluster is waited for, else one trial.
    """
    tune = experiment.tune
    num_trials = 1
    if tune.concurrency != "auto" and experiment.train.wait_for_nodes_s:
        num_trials = min(tune.concurrency, tune.trials)
    gpus = Capacity(()).gpus_per_trial(experiment)  # those that it takes on any machines
    bundle = {"CPU": tune.cpus_per_trial, "GPU": gpus}
    num_workers = num_trials * tune.workers_per_trial
    return ResourceRequest("trials", "tune.concurrency", num_workers, bundle)
