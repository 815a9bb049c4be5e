"""Whole runs: `tune`, `train`."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from raymtl import run_folder
from raymtl.cli.notes import print_notes
from raymtl.cli.options import Address, AsJson, Config, DryRun, Resume, Sets, overrides
from raymtl.cli.tables import print_scores
from raymtl.config import Experiment, load
from raymtl.data import Arrays
from raymtl.evaluation.baselines import planned
from raymtl.evaluation.scores import refuse_unscored
from raymtl.notes import Note
from raymtl.reporting.console import plain_console
from raymtl.storage import strict_json
from raymtl.types import UserError


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
    experiment = load(config, overrides(sets))
    if not experiment.search:
        raise UserError(
            f"{config}: search: expected something to search, got nothing. Use `raymtl train`, or "
            "add domains."
        )
    if dry_run:
        _print_plan(experiment, as_json, searching=True)
        return
    # Importing Ray takes seconds, which a mistyped key should not cost.
    from raymtl.pipeline import capacity, pipeline

    capacity.refuse(experiment, address, searching=True)
    arrays = _loaded(experiment, config)
    if resume:
        run = run_folder.latest(experiment, "tune")
    else:
        run = run_folder.create(experiment)
    _print_summary(
        pipeline.tune(experiment, run, arrays, address),
        run,
        as_json,
        experiment.data.notes(arrays),
    )


def train(
    config: Config,
    sets: Sets = [],  # noqa: B006
    address: Address = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Train one configuration on Ray Train workers, evaluate it, write the report."""
    experiment = load(config, overrides(sets))
    if dry_run:
        _print_plan(experiment, as_json, searching=False)
        return
    # Importing Ray takes seconds, which a mistyped key should not cost.
    from raymtl.pipeline import capacity, pipeline

    capacity.refuse(experiment, address, searching=False)
    arrays = _loaded(experiment, config)
    if resume:
        run = run_folder.latest(experiment, "train")
    else:
        run = run_folder.create(experiment)
    _print_summary(
        pipeline.train_run(experiment, run, arrays, address),
        run,
        as_json,
        experiment.data.notes(arrays),
    )


def _loaded(experiment: Experiment, config: Path) -> Arrays:
    """The data; read before anything is started or made, for there may be something wrong with
    them.

    Prints what was decided while they were read, in some lines.
    """
    console = plain_console(stderr=True)
    with console.status("reading the data"):
        arrays = experiment.data.load()
        refuse_unscored(experiment, arrays)
    print_notes(console, experiment.data.notes(arrays), config)
    return arrays


def _print_summary(
    summary: Mapping[str, Any], run: Path, as_json: bool, printed: Sequence[Note]
) -> None:
    """The scores and what they say; of the notes those that are not `printed` yet."""
    if as_json:
        print(strict_json.dumps(summary, indent=2))
        return
    from raymtl.reporting.html import outcome, protocol, result_rows

    console = plain_console(soft_wrap=True)
    console.print()
    print_scores(summary["models"])
    console.print(f"\n{outcome(result_rows(summary))} {protocol(summary)}", highlight=False)
    print_notes(console, [note for one in summary["notes"] if (note := Note(**one)) not in printed])
    if "regret" in summary:
        about = summary["regret"]
        weights = ", ".join(
            f"{task} {weight:.2f}" for task, weight in about["best_weights"].items()
        )
        console.print(
            f"\nRegret: {about['regret']:+.2f} summed over all steps ({about['loss_per_step']:.4f} "
            f"a step, the best of {len(about['fixed_loss_per_step'])} fixed weights, {weights}: "
            f"{about['fixed_loss_per_step'][about['best']]:.4f}).",
            highlight=False,
        )
    where = os.path.relpath(run) if run.absolute().is_relative_to(Path.cwd()) else run
    shares = f"waited for data {summary['data_wait_pct']:.1f} % of its time"
    if summary["communication_pct"]:
        shares += f", and communicated with other workers {summary['communication_pct']:.1f} %"
    console.print(
        f"\n{summary['seconds']:.0f} s; training {shares}. Open {where}/report.html; next: raymtl "
        f"adapt {where}",
        highlight=False,
    )


def _print_plan(experiment: Experiment, as_json: bool, *, searching: bool) -> None:
    train_settings, settings = experiment.train, experiment.tune
    content: dict[str, Any] = {
        "run": str(Path(experiment.output) / experiment.name),
        "train": {
            "workers": train_settings.workers,
            **({"min_workers": train_settings.min_workers} if train_settings.min_workers else {}),
            "cpus_per_worker": train_settings.cpus_per_worker,
            "steps": train_settings.steps,
            "episodes_per_step": train_settings.meta_batch,
            "num_parameters": sum(v.numel() for v in experiment.build().init_params().values()),
        },
    }
    if experiment.stages:
        content["train"]["steps_of_stages"] = [
            part.experiment.train.steps for part in experiment.parts()
        ]
    if searching:
        if hasattr(os, "sched_getaffinity"):
            cores = len(os.sched_getaffinity(0))
        else:
            cores = os.cpu_count() or 1
        each = settings.workers_per_trial * settings.cpus_per_trial
        here = max(0, min(int(cores / each), settings.trials))
        content["search"] = {
            "trials": settings.trials,
            "objectives": dict(zip(settings.metrics, settings.modes, strict=True)),
            "concurrency": here
            if settings.concurrency == "auto"
            else min(here, settings.concurrency),
            "concurrency_of": f"{cores} CPU of this machine",
            "cpus_per_trial": each,
            "workers_per_trial": settings.workers_per_trial,
            "asha": settings.asha.model_dump() if settings.asha else None,
            "space": {
                key: domain.model_dump(exclude_defaults=True)
                for key, domain in experiment.search.items()
            },
        }
    trainings = planned(experiment, searching=searching)
    content["trainings"] = [
        {"name": name, "number": number, "steps": steps} for name, number, steps in trainings
    ]
    content["total"] = {
        "trainings": sum(each.number for each in trainings),
        "outer_steps": sum(each.number * each.steps for each in trainings),
    }
    if as_json:
        print(strict_json.dumps(content, indent=2))
    else:
        print(yaml.safe_dump(json.loads(strict_json.dumps(content)), sort_keys=False).rstrip())
