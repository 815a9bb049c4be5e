"""Whether the cluster has what a run will hold at the same time."""

from pathlib import Path

from raymtl.cluster.address import resolve
from raymtl.cluster.capacity import shortfalls, workers_key
from raymtl.cluster.doctor.local_checks import resources
from raymtl.cluster.doctor.node_probe import machines, survey
from raymtl.config import Experiment
from raymtl.distributed.connection import check_address
from raymtl.distributed.trainer import ensure_resources, gpus_per_worker
from raymtl.reporting.terminal import View
from raymtl.types import UserError

NOTICE_S = 60.0
"""Ray notices after about 65 s that a machine went silent, of which it waits 30 for its answers
here.
"""


def refuse(experiment: Experiment, address: str | None, *, searching: bool) -> None:
    """Raises UserError, before anything is made, where nothing listens or this machine, alone, has
    no room.
    """
    check_address(address)
    if resolve(address):
        return
    missing = shortfalls(experiment, [resources()], searching=searching)
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


def _ensure_room(experiment: Experiment, *, searching: bool) -> None:
    """Returns when the cluster has room for all that will be held at the same time. Raises
    UserError if it has not.
    """
    wait_s = experiment.train.wait_for_nodes_s
    if searching:
        tune = experiment.tune
        if tune.concurrency == "auto":
            at_once = 1
        else:
            at_once = min(tune.concurrency, tune.trials)
        if wait_s:
            trials = at_once
        else:
            trials = 1
        if experiment.train.device == "cuda":
            wanted = 1.0
        else:
            wanted = 0.0
        if tune.gpus_per_trial == "auto":
            gpus = wanted
        else:
            gpus = tune.gpus_per_trial
        workers = trials * tune.workers_per_trial
        ensure_resources(workers, tune.cpus_per_trial, gpus, key="tune.concurrency", wait_s=wait_s)
    train = experiment.train
    ensure_resources(
        train.fewest,
        train.cpus_per_worker,
        gpus_per_worker(experiment, train.fewest),
        key=workers_key(experiment),
        wait_s=wait_s,
    )
    # What an autoscaling cluster lacks, it is still to start.
    if wait_s:
        missing = []
    else:
        missing = shortfalls(experiment, machines(), searching=searching)
    if missing:
        raise UserError(missing[0])
