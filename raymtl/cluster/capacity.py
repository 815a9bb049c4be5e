"""What a search and a training take of the machines, and whether any of it would wait for ever."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from raymtl.cluster.doctor.check import Check
from raymtl.config import Experiment
from raymtl.types import UserError

Machines = Sequence[Mapping[str, float]]
"""What each machine has, as Ray counts it: CPU, GPU, memory in bytes."""

BUILDER = {"CPU": 1.0}
"""What a builder of episodes takes (raymtl/distributed/builders.py)."""

DRIVER_MEMORY = 100e6
"""Bytes that Ray reserves for the driver of a trial with workers of its own, which takes no CPU."""


class Plan(NamedTuple):
    """What a search will take of the cluster."""

    trials: int
    concurrency: int
    workers: int
    cpus: float
    gpus: float


class ResourceRequest(NamedTuple):
    """Bundles of resources that are held at the same time, each on one machine.

    Where fewer fit, Ray would wait for the rest indefinitely.
    """

    purpose: str
    key: str
    """The dotted key that makes the request smaller."""
    num_bundles: int
    bundle: Mapping[str, float]


class Capacity(NamedTuple):
    """What the machines have, and the rules for what a run takes of them."""

    machines: Machines

    def total(self, resource: str) -> float:
        """How much of a resource all machines have together."""
        return sum(machine.get(resource, 0) for machine in self.machines)

    def count_fitting(self, bundle: Mapping[str, float]) -> int:
        """How many bundles fit at the same time; one never spans two machines."""
        amounts = {name: amount for name, amount in bundle.items() if amount}
        count = 0
        for machine in self.machines:
            shares = (machine.get(name, 0) / amount for name, amount in amounts.items())
            count += int(min(shares) + 1e-9)
        return count

    def left_beside(self, request: ResourceRequest) -> "Capacity":
        """What the machines still have when the first of them hold as much of a request as fits."""
        left = request.num_bundles
        remaining: list[dict[str, float]] = []
        for machine in self.machines:
            held = min(left, Capacity([machine]).count_fitting(request.bundle))
            left -= held
            remaining.append(
                {
                    name: amount - held * request.bundle.get(name, 0)
                    for name, amount in machine.items()
                }
            )
        return Capacity(remaining)

    def gpus_per_worker(self, experiment: Experiment, num_workers: int) -> int:
        """1 where `train.device` wants GPUs, or allows them and there is one for each worker."""
        device = experiment.train.device
        enough = self.total("GPU") >= num_workers
        return int(device == "cuda" or (device == "auto" and enough))

    def gpus_per_trial(self, experiment: Experiment) -> float:
        """`tune.gpus_per_trial`; where that is auto, the rule of a training of one worker."""
        gpus = experiment.tune.gpus_per_trial
        if gpus == "auto":
            return float(self.gpus_per_worker(experiment, 1))
        return gpus

    def plan(self, experiment: Experiment) -> Plan:
        """How many trials run at a time, so that none can wait for what another holds.

        Raises UserError where not even one trial fits.
        """
        settings = experiment.tune
        gpus, workers = self.gpus_per_trial(experiment), settings.workers_per_trial
        bundle = {"CPU": settings.cpus_per_trial, "GPU": gpus}
        fits = self.count_fitting(bundle) // workers
        if fits < 1:
            raise UserError(
                f"tune.cpus_per_trial: a trial takes {workers} x {settings.cpus_per_trial:g} CPU "
                f"and {gpus:g} GPU, the cluster has {self.total('CPU'):g} and "
                f"{self.total('GPU'):g} on {len(self.machines)} machines. "
                "Lower tune.cpus_per_trial, tune.gpus_per_trial or tune.workers_per_trial."
            )
        concurrency = min(fits, settings.trials)
        if settings.concurrency != "auto":
            concurrency = min(concurrency, settings.concurrency)
        return Plan(settings.trials, concurrency, workers, settings.cpus_per_trial, gpus)

    def requests(self, experiment: Experiment, *, searching: bool) -> list[ResourceRequest]:
        """What `raymtl tune`, or `train`, will hold at the same time, one after the other.

        Builders are held beside training: `builders_shortfall` looks for both. Raises UserError
        where not even one trial fits.
        """
        train, tune = experiment.train, experiment.tune
        requests = []
        comparison_key, cpus = "train.cpus_per_worker", train.cpus_per_worker
        if searching:
            plan = self.plan(experiment)
            requests += self._search_requests(experiment, plan)
            comparison_key, cpus = "tune.cpus_per_trial", plan.cpus
        requests.append(self.training_request(experiment))
        if experiment.mode.comparisons(experiment.data.task_names, experiment.seed):
            bundle = {"CPU": cpus, "GPU": self.gpus_per_worker(experiment, 1)}
            requests.append(
                ResourceRequest("a training to compare with", comparison_key, 1, bundle)
            )
        scoring = {"CPU": tune.cpus_per_trial}
        requests.append(ResourceRequest("scoring", "tune.cpus_per_trial", 1, scoring))
        return requests

    def training_request(self, experiment: Experiment) -> ResourceRequest:
        """What the training of the configuration itself, or of the winner, holds at least."""
        train = experiment.train
        gpus = self.gpus_per_worker(experiment, train.num_min_workers)
        bundle = {"CPU": train.cpus_per_worker, "GPU": gpus}
        return ResourceRequest("training", workers_key(experiment), train.num_min_workers, bundle)

    def builders_shortfall(self, experiment: Experiment) -> str | None:
        """A sentence where `data.builders` and all workers do not fit at the same time, so that one
        of the two would wait indefinitely.
        """
        builders, train = experiment.data.builders, experiment.train
        if builders == "auto" or not builders:
            return None  # `auto` takes what is free
        training = self.training_request(experiment)._replace(num_bundles=train.workers)
        free = self.left_beside(training).count_fitting(BUILDER)
        if free >= builders:
            return None
        return (
            f"data.builders: expected a CPU for each of {builders} builders beside train.workers: "
            f"{train.workers} at {train.cpus_per_worker:g} CPU, got {free} left of "
            f"{self.total('CPU'):g}. Lower data.builders, or set it to auto."
        )

    def _search_requests(self, experiment: Experiment, plan: Plan) -> list[ResourceRequest]:
        bundle = {"CPU": plan.cpus, "GPU": plan.gpus}
        num_workers = plan.concurrency * plan.workers
        requests = [ResourceRequest("trials", "tune.cpus_per_trial", num_workers, bundle)]
        if plan.workers > 1 and any("memory" in machine for machine in self.machines):
            driver = {"memory": DRIVER_MEMORY}
            requests.append(
                ResourceRequest("drivers of trials", "tune.concurrency", plan.concurrency, driver)
            )
        if experiment.tune.chosen_baselines:
            baseline = {"CPU": plan.cpus, "GPU": self.gpus_per_worker(experiment, 1)}
            requests.append(ResourceRequest("a baseline", "tune.cpus_per_trial", 1, baseline))
        return requests

    def shortfalls(self, experiment: Experiment, *, searching: bool) -> list[str]:
        """A sentence for each request that would wait indefinitely, or be refused."""
        try:
            requests = self.requests(experiment, searching=searching)
        except UserError as error:
            return [str(error)]
        where = f"{len(self.machines)} machines"
        if len(self.machines) == 1:
            where = "1 machine"
        sentences = []
        for request in requests:
            num_fitting = self.count_fitting(request.bundle)
            if num_fitting < request.num_bundles:
                sentences.append(
                    f"{request.key}: {request.purpose}: expected room for {request.num_bundles} of "
                    f"{_in_words(request.bundle)} at the same time, got room for {num_fitting} on "
                    f"{where}. Lower it, or take larger machines."
                )
        for_builders = self.builders_shortfall(experiment)
        if for_builders:
            sentences.append(for_builders)
        return sentences


def workers_key(experiment: Experiment) -> str:
    """The dotted key that says how many workers training needs at least."""
    if experiment.train.min_workers is None:
        return "train.workers"
    return "train.min_workers"


def _in_words(bundle: Mapping[str, float]) -> str:
    units = {"CPU": "CPU", "GPU": "GPU", "memory": "bytes of memory"}
    return " and ".join(f"{amount:g} {units[name]}" for name, amount in bundle.items() if amount)


def check(experiment: Experiment, capacity: Capacity) -> Check:
    """Whether the machines have room for the experiment's search, or for its training where
    nothing is searched.
    """
    searching = bool(experiment.search)
    missing = capacity.shortfalls(experiment, searching=searching)
    if missing:
        wait_s = experiment.train.wait_for_nodes_s
        advice, ok = "Lower what is named, or add machines.", False
        if not wait_s:
            return Check("room for the plan", ok, " ".join(missing), advice)
        advice += f" The run itself waits {wait_s} s for those that an autoscaling cluster starts."
        return Check("room for the plan", None, " ".join(missing), advice)
    requests = capacity.requests(experiment, searching=searching)
    texts = [f"{each.purpose}: {each.num_bundles} x {_in_words(each.bundle)}" for each in requests]
    builders = experiment.data.builders
    if builders != "auto" and builders:
        texts.append(f"builders beside it: {builders} x {_in_words(BUILDER)}")
    return Check("room for the plan", True, ", ".join(texts), "")
