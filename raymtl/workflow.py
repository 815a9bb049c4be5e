"""From a configuration to a finished run folder: search, train the winner, measure it, write the report."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import torch

from raymtl import runs
from raymtl.baselines import baselines, table
from raymtl.config import Experiment
from raymtl.data import Arrays
from raymtl.evaluate import evaluate_folder
from raymtl.loop import Host, local_batches, train_loop
from raymtl.progress import Row, View
from raymtl.report import write_report
from raymtl.train import check_resources, gpus_per_worker, observer, start_ray, train
from raymtl.tune import plan, run_search, winner
from raymtl.types import DivergedError

POLL_S = 0.5


def tune(experiment: Experiment, run: Path, address: str | None) -> dict[str, Any]:
    """Searches, trains the winner and its baselines, evaluates all; returns the content of summary.json.

    `run` may be a folder in which this stopped half-way: what is done is not done again.
    """
    started = time.time()
    _begin(experiment, run)
    with View(f"raymtl tune {experiment.name}") as view, _ray(address, view):
        have = ray.cluster_resources()
        settings = plan(experiment, have.get("CPU", 0), have.get("GPU", 0))
        check_resources(experiment, experiment.train.workers, experiment.train.cpus_per_worker, gpus_per_worker(experiment))
        arrays = experiment.data.load()
        view.say(f"{settings.trials} trials, {settings.concurrency} at a time; run folder {run}")
        study = run_search(experiment, run, arrays, settings, view)
        best = winner(study, experiment)
        values = best.user_attrs["values"]
        chosen = experiment.override(values)
        view.say(f"trial {best.number} wins on the validation split; training it again on Ray Train, and its baselines")
        shared = ray.put(arrays)
        folders = {"winner": run / "best"}
        compared = baselines(experiment, chosen)
        folders |= {name: run / "baselines" / name for name in compared}
        _train_all({folders[name]: model for name, model in compared.items()}, shared, settings.cpus, view)
        _train_on_workers(chosen, shared, run, view)
    states = [_state(trial) for trial in study.trials]
    return _finish(
        run,
        {
            "name": experiment.name,
            "command": "tune",
            "seed": experiment.seed,
            "trials": {state: states.count(state) for state in ("complete", "pruned", "failed")},
            "objectives": dict(zip(experiment.tune.metrics, experiment.tune.modes, strict=True)),
            "best_trial": best.number,
            "best_values": values,
            "pareto": sorted(trial.number for trial in study.best_trials),
        },
        folders,
        started,
    )


def _state(trial: Any) -> str:
    from raymtl.tune import STATES

    return STATES[trial.state]


def train_run(experiment: Experiment, run: Path, address: str | None) -> dict[str, Any]:
    """Trains the configuration itself and evaluates it; returns the content of summary.json."""
    started = time.time()
    _begin(experiment, run)
    with View(f"raymtl train {experiment.name}") as view, _ray(address, view):
        check_resources(experiment, experiment.train.workers, experiment.train.cpus_per_worker, gpus_per_worker(experiment))
        view.say(f"{experiment.train.steps} steps on {experiment.train.workers} workers; run folder {run}")
        _train_on_workers(experiment, ray.put(experiment.data.load()), run, view)
    about = {"name": experiment.name, "command": "train", "seed": experiment.seed}
    return _finish(run, about, {"model": run / "best"}, started)


def _begin(experiment: Experiment, run: Path) -> None:
    if not (run / "config.yaml").exists():
        runs.publish(run / "config.yaml", experiment.save)
        runs.write_json(run / "environment.json", runs.environment(experiment))


@contextmanager
def _ray(address: str | None, view: View) -> Iterator[None]:
    view.say("connecting to Ray" if address else "starting Ray on this machine")
    start_ray(address)
    try:
        yield
    finally:
        ray.shutdown()


def _train_on_workers(experiment: Experiment, arrays: "ray.ObjectRef[Any]", run: Path, view: View) -> None:
    folder = run / "best"
    if not (folder / "metrics.json").exists():
        folder.mkdir(exist_ok=True)
        gpus = gpus_per_worker(experiment)
        with _watched({folder: experiment}, view):
            train(
                experiment, arrays, folder, ray_folder=run / ".ray", workers=experiment.train.workers,
                cpus=experiment.train.cpus_per_worker, gpus=gpus,
            )  # fmt: skip
        view.say("scoring it on held-out episodes")
        ray.get(_evaluate.options(num_cpus=experiment.tune.cpus_per_trial).remote(folder, arrays))


def _train_all(models: dict[Path, Experiment], arrays: "ray.ObjectRef[Any]", cpus: float, view: View) -> None:
    """Trains and evaluates each model in a task of its own, as many at a time as the cluster has room for."""
    missing = {folder: model for folder, model in models.items() if not (folder / "metrics.json").exists()}
    with _watched(missing, view):
        tasks = []
        for folder, model in missing.items():
            folder.mkdir(parents=True, exist_ok=True)
            options = _train_and_evaluate.options(
                num_cpus=cpus, num_gpus=gpus_per_worker(model), max_retries=model.train.max_failures
            )
            tasks.append(options.remote(model.model_dump(mode="json"), folder, arrays, cpus))
        ray.get(tasks)


@ray.remote
def _train_and_evaluate(tree: dict[str, Any], folder: Path, arrays: Arrays, cpus: float) -> None:
    experiment = Experiment.model_validate(tree)
    torch.set_num_threads(max(1, int(cpus)))
    saved = folder / "checkpoint"
    host = Host(
        report=lambda metrics, kept: None,
        observe=observer(f"{folder.parent.parent.name}/{folder.name}", experiment.data.task_names),
        resume_from=saved if saved.exists() else None,
        device=torch.device("cuda" if ray.get_gpu_ids() else "cpu"),
    )
    try:
        train_loop(experiment, arrays, local_batches(experiment, arrays), host, folder)
    except DivergedError as error:
        raise DivergedError(f"{folder.name}: {error}") from None
    evaluate_folder(folder, arrays)


@ray.remote
def _evaluate(folder: Path, arrays: Arrays) -> None:
    evaluate_folder(folder, arrays)


@contextmanager
def _watched(models: dict[Path, Experiment], view: View) -> Iterator[None]:
    """Shows how far the trainings in these folders are, from the histories that they write."""
    ended = threading.Event()

    def look() -> None:
        for folder, model in models.items():
            history = runs.read_rows(folder / "history.parquet")
            scores = [row["val.score"] for row in history if row.get("val.score") is not None]
            step, steps = (history[-1]["step"] if history else 0), model.train.steps
            state = "waiting" if not history else "complete" if step == steps else "running"
            view.show(folder.name, Row(step, steps, state, f"val.score {scores[-1]:.4f}" if scores else "", ""))

    def follow() -> None:
        while not ended.wait(POLL_S):
            look()

    watcher = threading.Thread(target=follow, daemon=True)
    watcher.start()
    try:
        yield
        look()
    finally:
        ended.set()
        watcher.join()


def _finish(run: Path, about: dict[str, Any], folders: dict[str, Path], started: float) -> dict[str, Any]:
    best = next(iter(folders.values()))
    runs.write_rows(run / "history.parquet", runs.read_rows(best / "history.parquet"))
    if not (run / "tensorboard").exists():
        (run / "tensorboard").symlink_to("best/tensorboard")
    rows = table(folders)
    for row in rows:
        row["folder"] = str(Path(row["folder"]).relative_to(run)) if row["folder"] else None
    summary = {**about, "seconds": time.time() - started, "models": rows}
    runs.write_json(run / "summary.json", summary)
    write_report(run)
    return summary
