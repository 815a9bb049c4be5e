"""Trains and scores the baselines that the winner is compared with."""

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
import torch
from ray.exceptions import RayError, RayTaskError

from raymtl.cluster.doctor.check import first_line
from raymtl.config import Experiment
from raymtl.data import Arrays, Source
from raymtl.distributed.carried import Carried, carry
from raymtl.distributed.trainer import (
    current_capacity,
    is_machine_preempted,
)
from raymtl.evaluation.baselines import baselines, comparators, regret
from raymtl.evaluation.evaluate import evaluate_folder
from raymtl.evaluation.kept import kept_row
from raymtl.pipeline.monitor import watched
from raymtl.reporting.ray_metrics import observer
from raymtl.reporting.terminal import View
from raymtl.schema.component_modules import Shipment, shipment
from raymtl.storage import formats
from raymtl.storage.fence import PREFIX, Attempt, Superseded
from raymtl.training.context import TrainContext
from raymtl.training.loop import local_batches, train_loop
from raymtl.types import DivergedError, UserError

ArraysRef = Any  # ray.ObjectRef of Arrays


def train_baselines(
    experiment: Experiment,
    chosen: Experiment,
    attempt: Attempt,
    arrays: ArraysRef,
    cpus: float,
    view: View,
) -> dict[str, Path]:
    """Trains every candidate in a task of its own, as many at a time as the cluster has room for;
    NAME -> folder.

    The candidate whose kept model has the best validation score becomes the baseline, and it alone
    is scored on test episodes. A baseline of which every candidate diverged is said, and left out.
    """
    run = attempt.folder
    models = baselines(experiment, chosen)
    folders = {
        (name, i): candidate_folder(run, name, i)
        for name in models
        for i in range(len(models[name]))
    }
    _train_all(
        {folder: models[name][i] for (name, i), folder in folders.items()}, arrays, cpus, view
    )
    made: dict[str, Path] = {}
    scored = []
    for name, tried in models.items():
        scores = [kept_score(folders[name, i], model) for i, model in enumerate(tried)]
        best = scores.index(max(scores))
        if not (folders[name, best] / "model.safetensors").exists():
            continue
        made[name] = run / "baselines" / name
        if not (made[name] / "metrics.json").exists():
            copy_model(attempt, folders[name, best], made[name])
            source = experiment.data.select_tasks(tried[best].data.task_names)
            scored.append(start_scoring(made[name], arrays, source, cpus))
    results_of(scored)
    return made


def candidate_folder(run: Path, name: str, number: int) -> Path:
    """The model folder of a candidate for the baseline `name`."""
    return run / "baselines" / "candidates" / f"{name}-{number}"


def start_scoring(folder: Path, arrays: ArraysRef, source: Source, cpus: float) -> Any:
    """Starts a task that scores RUN/baselines/NAME on test examples; `results_of` waits for it."""
    options = {"num_cpus": cpus, "name": f"{folder.parents[1].name}/{folder.name} scoring"}
    score = score_remotely.options(**options)
    return score.remote(folder, arrays, source, shipment())


def results_of(tasks: Sequence[Any]) -> list[Any]:
    """What tasks return. Raises UserError where a process of theirs is lost more often than Ray
    starts it again.
    """
    try:
        return list(ray.get(list(tasks)))
    except RayTaskError:
        raise  # what a task raised is a fault of ours
    except RayError as error:
        raise UserError(
            "train.max_failures: expected fewer losses, got one more of a process or machine "
            f"({first_line(error).rstrip('.')}). Give the same command with --resume."
        ) from None


def copy_model(attempt: Attempt, folder: Path, to: Path) -> None:
    """Publishes a copy of a model folder, without the attempts at its training."""
    attempt.remove(to)
    attempt.publish(to, lambda aside: _copy_files(folder, aside))


def _copy_files(folder: Path, to: Path) -> None:
    """As shutil.copytree, which would make the parents of `to`, and with them an attempt's folder
    that is gone.
    """
    to.mkdir()
    for path in folder.iterdir():
        if path.is_dir() and not path.name.startswith(PREFIX):
            _copy_files(path, to / path.name)
        elif path.is_file():
            shutil.copy2(path, to / path.name)


def _train_all(
    models: Mapping[Path, Experiment], arrays: ArraysRef, cpus: float, view: View
) -> None:
    """Trains what is not trained yet, each in a task of its own; says which diverged."""
    missing = {
        folder: model
        for folder, model in models.items()
        if not (folder / "model.safetensors").exists()
    }
    with watched(missing, view):
        tasks = []
        for folder, model in missing.items():
            folder.mkdir(parents=True, exist_ok=True)
            options = _train_here.options(
                name=_name(folder),
                num_cpus=cpus,
                num_gpus=current_capacity().gpus_per_worker(model, 1),
                max_retries=model.train.max_failures,
                retry_exceptions=[Superseded],
            )
            tasks.append(options.remote(carry(model), folder, arrays, cpus))
        for folder, reason in zip(missing, results_of(tasks), strict=True):
            if reason:
                view.say(f"{folder.parent.name[:-1]} {folder.name} diverged: {reason}")


def regret_of_run(
    experiment: Experiment, attempt: Attempt, arrays: ArraysRef, cpus: float, view: View
) -> dict[str, Any]:
    """Trains what the mode wants to be compared with; `regret` for the summary, or nothing."""
    run = attempt.folder
    models = comparators(experiment)
    folders = {name: run / "baselines" / "comparators" / name for name in models}
    _train_all({folders[name]: model for name, model in models.items()}, arrays, cpus, view)
    if models:
        found = regret(run / "best", folders)
    else:
        found = None
    if found is None:
        return {}
    curve = found.pop("curve")
    rows = [{"step": i, "regret": value} for i, value in enumerate(curve, start=1)]
    formats.write_rows(run / "regret.parquet", rows, attempt.publish)
    return {
        "regret": found | {"best_weights": models[found["best"]].weighting.model_dump()["weights"]}
    }


def kept_score(folder: Path, experiment: Experiment) -> float:
    """The validation score of the model that is kept; a training that did not come to its end, or
    has no score, loses to every other.
    """
    if not (folder / "model.safetensors").exists():
        return -math.inf
    history = formats.read_rows(folder / "history.parquet")
    score = kept_row(experiment.train, history)["val.score"]
    if score is None:
        return -math.inf
    return float(score)


def _name(folder: Path) -> str:
    """RUN/NAME of a training that something is compared with, whose folder is
    RUN/baselines/candidates/NAME.
    """
    return f"{folder.parents[2].name}/{folder.name}"


@ray.remote
def _train_here(carried: Carried, folder: Path, arrays: Arrays, cpus: float) -> str | None:
    """Trains in this process, from the last checkpoint if there is one; returns why it diverged, if
    it did.
    """
    experiment = carried.unpack()
    torch.set_num_threads(max(1, int(cpus)))
    context = TrainContext(
        report=lambda metrics: None,
        log_step=observer(_name(folder), experiment.data.task_names),
        device=torch.device("cuda" if ray.get_gpu_ids() else "cpu"),
        is_preempted=is_machine_preempted,
    )
    try:
        train_loop(experiment, arrays, local_batches(experiment, arrays), context, folder)
    except DivergedError as error:
        return str(error)
    return None


@ray.remote
def score_remotely(folder: Path, arrays: Arrays, source: Source, components: Shipment) -> None:
    components.unpack()
    torch.set_num_threads(
        max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1)))
    )
    evaluate_folder(folder, arrays, source)
