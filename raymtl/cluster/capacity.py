"""What a search and a training take of the machines, and whether any of it would wait for ever."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from raymtl.cluster.doctor.check import Check
from raymtl.config import Experiment
from raymtl.types import UserError

Machines = Sequence[Mapping[str, float]]
"""What each machine has, as Ray counts it: CPU, GPU, memory in bytes."""

DRIVER_MEMORY = 100e6
"""Bytes that Ray reserves for the driver of a trial with workers of its own, which takes no CPU."""


class Plan(NamedTuple):
    """What a search will take of the cluster."""

    trials: int
    concurrency: int
    workers: int
    cpus: float
    gpus: float


class Need(NamedTuple):
    """Pieces that are held at the same time, each on one machine: with fewer, Ray would wait for
    the rest for ever.
    """

    what: str
    key: str
    number: int
    each: Mapping[str, float]


def fitting(machines: Machines, each: Mapping[str, float]) -> int:
    """How many pieces fit at the same time; one never spans two machines."""
    return sum(
        int(min(have.get(name, 0) / need + 1e-9 for name, need in each.items() if need))
        for have in machines
    )


def slots(machines: Machines, cpus: float, gpus: float) -> int:
    """How many workers fit at the same time; one worker never spans two machines."""
    return fitting(machines, {"CPU": cpus, "GPU": gpus})


def gpus_for(experiment: Experiment, machines: Machines, workers: int) -> int:
    """1 where the configuration wants GPUs, or lets them be used and there is one for each of the
    workers.
    """
    enough = sum(have.get("GPU", 0) for have in machines) >= workers
    return int(experiment.train.device == "cuda" or (experiment.train.device == "auto" and enough))


def workers_key(experiment: Experiment) -> str:
    """Which value says how many workers training needs at least."""
    if experiment.train.min_workers is None:
        return "train.workers"
    return "train.min_workers"


def plan(experiment: Experiment, machines: Machines) -> Plan:
    """How many trials run at a time, so that none can wait for what another holds.

    `machines` are the resources of each. Raises UserError where not even one trial fits.
    """
    settings = experiment.tune
    gpus = settings.gpus_per_trial
    if gpus == "auto":
        any_gpu = any(have.get("GPU", 0) for have in machines)
        if any_gpu and experiment.train.device != "cpu":
            gpus = 1.0
        else:
            gpus = 0.0
    workers = settings.workers_per_trial
    fits = slots(machines, settings.cpus_per_trial, gpus) // workers
    if fits < 1:
        cpus, all_gpus = (sum(have.get(name, 0) for have in machines) for name in ("CPU", "GPU"))
        raise UserError(
            f"tune.cpus_per_trial: a trial takes {workers} x {settings.cpus_per_trial:g} CPU and "
            f"{gpus:g} GPU, the cluster has {cpus:g} and {all_gpus:g} on {len(machines)} machines. "
            "Lower tune.cpus_per_trial, tune.gpus_per_trial or tune.workers_per_trial."
        )
    if settings.concurrency == "auto":
        wanted = fits
    else:
        wanted = settings.concurrency
    return Plan(
        settings.trials, min(wanted, fits, settings.trials), workers, settings.cpus_per_trial, gpus
    )


def needs(experiment: Experiment, machines: Machines, *, searching: bool) -> list[Need]:
    """What `raymtl tune`, or `train`, will hold at the same time, one after the other.

    Ray Data takes none: its rows are numbers that stand ready, and the workers build the episodes
    themselves. Raises UserError where not even one trial fits.
    """
    train, tune = experiment.train, experiment.tune
    alone = gpus_for(experiment, machines, 1)
    found = []
    cpus = train.cpus_per_worker
    if searching:
        chosen = plan(experiment, machines)
        trial = {"CPU": chosen.cpus, "GPU": chosen.gpus}
        found.append(
            Need("trials", "tune.cpus_per_trial", chosen.concurrency * chosen.workers, trial)
        )
        if chosen.workers > 1 and any("memory" in have for have in machines):
            found.append(
                Need(
                    "drivers of trials",
                    "tune.concurrency",
                    chosen.concurrency,
                    {"memory": DRIVER_MEMORY},
                )
            )
        if tune.chosen_baselines:
            found.append(
                Need("a baseline", "tune.cpus_per_trial", 1, {"CPU": chosen.cpus, "GPU": alone})
            )
        cpus = chosen.cpus
    each = {"CPU": train.cpus_per_worker, "GPU": gpus_for(experiment, machines, train.fewest)}
    found.append(Need("training", workers_key(experiment), train.fewest, each))
    if experiment.mode.comparisons(experiment.data.task_names, experiment.seed):
        if searching:
            key = "tune.cpus_per_trial"
        else:
            key = "train.cpus_per_worker"
        found.append(Need("a training to compare with", key, 1, {"CPU": cpus, "GPU": alone}))
    found.append(Need("scoring", "tune.cpus_per_trial", 1, {"CPU": tune.cpus_per_trial}))
    return found


def shortfalls(experiment: Experiment, machines: Machines, *, searching: bool) -> list[str]:
    """A sentence for each thing that would wait for ever, or be refused, on these machines."""
    try:
        wanted = needs(experiment, machines, searching=searching)
    except UserError as error:
        return [str(error)]
    if len(machines) == 1:
        where = "1 machine"
    else:
        where = f"{len(machines)} machines"
    return [
        f"{need.key}: {need.what}: expected room for {need.number} of {_told(need.each)} at the "
        f"same time, got room for {room} on {where}. Lower it, or take larger machines."
        for need in wanted
        if (room := fitting(machines, need.each)) < need.number
    ]


def _told(each: Mapping[str, float]) -> str:
    units = {"CPU": "CPU", "GPU": "GPU", "memory": "bytes of memory"}
    return " and ".join(f"{amount:g} {units[name]}" for name, amount in each.items() if amount)


def check(experiment: Experiment, machines: Machines) -> Check:
    """Whether these machines have room for the experiment's search, or for its training where
    nothing is searched.
    """
    searching = bool(experiment.search)
    missing = shortfalls(experiment, machines, searching=searching)
    if missing:
        wait_s = experiment.train.wait_for_nodes_s
        advice = "Lower what is named, or add machines."
        if wait_s:
            advice += (
                f" The run itself waits {wait_s} s for those that an autoscaling cluster starts."
            )
        return Check("room for the plan", None if wait_s else False, " ".join(missing), advice)
    found = ", ".join(
        f"{need.what}: {need.number} x {_told(need.each)}"
        for need in needs(experiment, machines, searching=searching)
    )
    return Check("room for the plan", True, found, "")
