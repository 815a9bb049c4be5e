"""Whole runs: `tune`, `train`."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

import raymtl
from raymtl.cli.options import Address, AsJson, Config, DryRun, Resume, Sets, load_config
from raymtl.cli.tables import print_scores
from raymtl.reporting.console import plain_console
from raymtl.reporting.notes import print_notes
from raymtl.storage import strict_json

if TYPE_CHECKING:
    from raymtl.api.run import Run
    from raymtl.config import Experiment
    from raymtl.storage.notes import Note


def tune(
    config: Config,
    sets: Sets = [],  # noqa: B006
    address: Address = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Search, train the winner on Ray Train workers, compare it with its baselines, write the
    report.
    """
    experiment = load_config(config, sets)
    from raymtl.api.whole_runs import check_searchable

    check_searchable(experiment)
    if dry_run:
        _print_plan(experiment, as_json, searching=True)
        return
    announced = Announced(config)
    run = raymtl.tune(experiment, address=address, resume=resume, announce=announced)
    _print_summary(run, as_json, announced.notes)


def train(
    config: Config,
    sets: Sets = [],  # noqa: B006
    address: Address = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Train one configuration on Ray Train workers, evaluate it, write the report."""
    experiment = load_config(config, sets)
    if dry_run:
        _print_plan(experiment, as_json, searching=False)
        return
    announced = Announced(config)
    run = raymtl.train(experiment, address=address, resume=resume, announce=announced)
    _print_summary(run, as_json, announced.notes)


class Announced:
    """The notes on the data of a configuration, which were printed before the training."""

    def __init__(self, config: Path) -> None:
        self.config = config
        self.notes: Sequence[Note] = ()

    def __call__(self, notes: "Sequence[Note]") -> None:
        self.notes = notes
        console = plain_console(stderr=True)
        print_notes(console, notes, f"raymtl data inspect {self.config}")


def _print_summary(run: "Run", as_json: bool, printed: "Sequence[Note]") -> None:
    """Prints the scores and what they say; of the notes only those that are not `printed` yet."""
    summary = run.summary
    if as_json:
        print(strict_json.dumps(summary, indent=2))
        return
    from raymtl.reporting.html import outcome, protocol, result_rows

    console = plain_console(soft_wrap=True)
    console.print()
    print_scores(summary["models"])
    console.print(f"\n{outcome(result_rows(summary))} {protocol(summary)}", highlight=False)
    print_notes(console, [note for note in run.notes if note not in printed])
    if "regret" in summary:
        console.print(_regret(summary["regret"]), highlight=False)
    folder: str | Path = run.folder
    if run.folder.is_relative_to(Path.cwd()):
        folder = os.path.relpath(run.folder)
    shares = f"waited for data {summary['data_wait_pct']:.1f} % of its time"
    if summary["communication_pct"]:
        shares += f", and communicated with other workers {summary['communication_pct']:.1f} %"
    if "builder_cpu_pct" in summary:
        shares += f"; its builders used {summary['builder_cpu_pct']:.0f} % of their CPUs"
    console.print(
        f"\n{summary['seconds']:.0f} s; training {shares}. Open {folder}/report.html; next: raymtl "
        f"adapt {folder}",
        highlight=False,
    )


def _regret(regret: Mapping[str, Any]) -> str:
    weights = ", ".join(f"{task} {weight:.2f}" for task, weight in regret["best_weights"].items())
    fixed_losses = regret["fixed_loss_per_step"]
    return (
        f"\nRegret: {regret['regret']:+.2f} summed over all steps ({regret['loss_per_step']:.4f} "
        f"a step, the best of {len(fixed_losses)} fixed weights, {weights}: "
        f"{fixed_losses[regret['best']]:.4f})."
    )


def _print_plan(experiment: "Experiment", as_json: bool, *, searching: bool) -> None:
    """Prints what `--dry-run` shows: the run folder, the training, the search, all trainings."""
    from raymtl.evaluation.baselines import planned

    plan: dict[str, Any] = {
        "run": str(Path(experiment.output) / experiment.name),
        "train": _planned_training(experiment),
    }
    if searching:
        plan["search"] = _planned_search(experiment)
    trainings = planned(experiment, searching=searching)
    plan["trainings"] = [
        {"name": name, "number": number, "steps": steps} for name, number, steps in trainings
    ]
    plan["total"] = {
        "trainings": sum(each.number for each in trainings),
        "outer_steps": sum(each.number * each.steps for each in trainings),
    }
    if as_json:
        print(strict_json.dumps(plan, indent=2))
    else:
        print(yaml.safe_dump(json.loads(strict_json.dumps(plan)), sort_keys=False).rstrip())


def _planned_training(experiment: "Experiment") -> dict[str, Any]:
    settings = experiment.train
    plan: dict[str, Any] = {"workers": settings.workers}
    if settings.min_workers:
        plan["min_workers"] = settings.min_workers
    algorithm = experiment.build(pretrained=False)
    plan |= {
        "cpus_per_worker": settings.cpus_per_worker,
        "steps": settings.steps,
        "episodes_per_step": settings.meta_batch,
        "num_parameters": sum(value.numel() for value in algorithm.init_params().values()),
        "num_constants": sum(value.numel() for value in algorithm.constants().values()),
    }
    if experiment.stages:
        plan["steps_of_stages"] = [
            part.experiment.train.steps for part in experiment.stage_configs()
        ]
    return plan


def _planned_search(experiment: "Experiment") -> dict[str, Any]:
    settings = experiment.tune
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    cpus_per_trial = settings.workers_per_trial * settings.cpus_per_trial
    concurrency = max(0, min(int(cores / cpus_per_trial), settings.trials))
    if settings.concurrency != "auto":
        concurrency = min(concurrency, settings.concurrency)
    asha = None
    if settings.asha:
        asha = settings.asha.model_dump()
    return {
        "trials": settings.trials,
        "objectives": dict(zip(settings.metrics, settings.modes, strict=True)),
        "concurrency": concurrency,
        "concurrency_of": f"{cores} CPU of this machine",
        "cpus_per_trial": cpus_per_trial,
        "workers_per_trial": settings.workers_per_trial,
        "asha": asha,
        "space": {
            key: distribution.model_dump(exclude_defaults=True)
            for key, distribution in experiment.search.items()
        },
    }
