"""From a configuration to a finished run folder: search, train the winner, measure it, write the report."""

import math
import shutil
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from raymtl.train import (  # isort: skip  (sets what Ray reads when it is imported)
    check_address,
    ensure_resources,
    gpus_per_worker,
    machine_leaving,
    observer,
    start_ray,
    train,
    why_given_up,
)

import ray
import torch
from ray.exceptions import RayError, RayTaskError

from raymtl import runs
from raymtl.baselines import baselines, comparators, notes_of_models, regret, table
from raymtl.board.board import Board
from raymtl.cluster import machines, resolve, survey
from raymtl.cluster.checks import first_line
from raymtl.cluster.machine import resources
from raymtl.cluster.room import plan, shortfalls, workers_key
from raymtl.config import Experiment
from raymtl.data import Arrays, Source
from raymtl.evaluate import evaluate_folder
from raymtl.fence import PREFIX, Attempt, Superseded
from raymtl.loop import Host, local_batches, train_loop
from raymtl.notes import Note
from raymtl.progress import Row, View
from raymtl.pulse import Lookout
from raymtl.report import write_report
from raymtl.search import searched_values
from raymtl.tune import STATES, run_search, winner
from raymtl.types import DivergedError, UserError

POLL_S = 0.5
NOTICE_S = 60.0
"""Ray notices after about 65 s that a machine went silent, of which it waits 30 for its answers here."""
ArraysRef = Any  # ray.ObjectRef of Arrays


def tune(experiment: Experiment, run: Path, arrays: Arrays, address: str | None) -> dict[str, Any]:
    """Searches, trains the winner and its baselines, evaluates all; returns the content of summary.json.

    `arrays` are what the data loaded, before anything was started or made: there may be something wrong with them.
    `run` may be a folder in which this stopped half-way: what is done is not done again.
    """
    started = time.time()
    with (
        _at_work(experiment, run, "tune") as attempt,
        View(f"raymtl tune {experiment.name}") as view,
        _ray(address, view),
        _board(experiment, run, view) as board,
    ):
        _ensure(experiment, run, view, searching=True)
        settings = plan(experiment, machines())
        view.say(f"{settings.trials} trials, {settings.concurrency} at a time; run folder {run}")
        study = run_search(experiment, attempt, arrays, settings, view, board)
        best = winner(study, experiment)
        chosen = experiment.override(best.user_attrs["values"])
        also = "its baselines and " if experiment.tune.chosen_baselines else ""
        view.say(f"trial {best.number} wins on the validation split; now {also}the winner itself train on Ray Train")
        shared = ray.put(arrays)
        compared = _train_baselines(experiment, chosen, attempt, shared, settings.cpus, view)
        _train_best(chosen, run, shared, view, board)
        about_regret = _regret(chosen, attempt, shared, settings.cpus, view)
    states = [STATES[trial.state] for trial in study.trials]
    about = {
        "name": experiment.name,
        "command": "tune",
        "seed": experiment.seed,
        "trials": {state: states.count(state) for state in ("complete", "pruned", "failed")},
        "objectives": dict(zip(experiment.tune.metrics, experiment.tune.modes, strict=True)),
        "best_trial": best.number,
        "best_values": best.user_attrs["values"],
        "pareto": sorted(trial.number for trial in study.best_trials),
    }
    notes = experiment.data.notes(arrays)
    return _finish(attempt, about | about_regret, {"winner": run / "best"} | compared, started, notes)


def train_run(experiment: Experiment, run: Path, arrays: Arrays, address: str | None) -> dict[str, Any]:
    """Trains the configuration itself on loaded data and evaluates it; returns the content of summary.json."""
    started = time.time()
    with (
        _at_work(experiment, run, "train") as attempt,
        View(f"raymtl train {experiment.name}") as view,
        _ray(address, view),
        _board(experiment, run, view) as board,
    ):
        _ensure(experiment, run, view, searching=False)
        least, most = experiment.train.fewest, experiment.train.workers
        workers = most if least == most else f"{least} to {most}"
        view.say(f"{experiment.train.steps} steps on {workers} workers; run folder {run}")
        shared = ray.put(arrays)
        _train_best(experiment, run, shared, view, board)
        about_regret = _regret(experiment, attempt, shared, experiment.train.cpus_per_worker, view)
    about = {"name": experiment.name, "command": "train", "seed": experiment.seed, **about_regret}
    return _finish(attempt, about, {"model": run / "best"}, started, experiment.data.notes(arrays))


def refuse(experiment: Experiment, address: str | None, *, searching: bool) -> None:
    """Raises UserError, before anything is made, where nothing listens or this machine, alone, has no room."""
    check_address(address)
    if resolve(address):
        return
    missing = shortfalls(experiment, [resources()], searching=searching)
    if missing:
        raise UserError(f"{missing[0]} Or give --address of a cluster.")


@contextmanager
def _at_work(experiment: Experiment, run: Path, command: str) -> Iterator[Attempt]:
    """Holds the run, and begins it if it is new."""
    with runs.held(run) as attempt:
        if not (run / "config.yaml").exists():
            runs.write_json(run / "environment.json", runs.environment(experiment, command), attempt.publish)
            attempt.publish(run / "config.yaml", experiment.save)
        yield attempt


def _ensure(experiment: Experiment, run: Path, view: View, *, searching: bool) -> None:
    """Waits for the machines that search and training will need, or refuses; then asks them all what they see.

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
    """Returns when the cluster has room for all that will be held at the same time. Raises UserError if it has not."""
    wait_s = experiment.train.wait_for_nodes_s
    if searching:
        tune = experiment.tune
        at_once = 1 if tune.concurrency == "auto" else min(tune.concurrency, tune.trials)
        trials = at_once if wait_s else 1
        wanted = 1.0 if experiment.train.device == "cuda" else 0.0
        gpus = wanted if tune.gpus_per_trial == "auto" else tune.gpus_per_trial
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
    missing = [] if wait_s else shortfalls(experiment, machines(), searching=searching)
    if missing:
        raise UserError(missing[0])


@contextmanager
def _ray(address: str | None, view: View) -> Iterator[None]:
    view.say(f"connecting to Ray at {address}" if address else "starting Ray on this machine")
    start_ray(address)
    try:
        yield
    finally:
        ray.shutdown()


def _board(experiment: Experiment, run: Path, view: View) -> closing[Board]:
    return closing(Board(run, experiment.train.max_failures, view.say))


def _train_best(experiment: Experiment, run: Path, arrays: ArraysRef, view: View, board: Board) -> None:
    folder = run / "best"
    if (folder / "metrics.json").exists():
        return
    folder.mkdir(exist_ok=True)
    gpus = gpus_per_worker(experiment, experiment.train.fewest)
    if not gpus and experiment.train.device == "auto" and ray.cluster_resources().get("GPU"):
        key = workers_key(experiment)
        view.say(f"fewer GPUs than {key}, so they train on CPUs; lower {key} to use the GPUs")
    board.started("best", searched_values(experiment.search, experiment.flat()))
    with _watched({folder: experiment}, view):
        try:
            train(
                experiment,
                arrays,
                folder,
                name=f"{run.name}/best",
                ray_folder=run / ".ray",
                workers=experiment.train.workers,
                fewest=experiment.train.fewest,
                cpus=experiment.train.cpus_per_worker,
                gpus=gpus,
            )
        except ray.train.TrainingFailedError as error:
            why = why_given_up(error)
            if why is None:
                raise
            raise UserError(
                f"{folder}: the training was given up, since {why}. When the cluster has room for its workers, give "
                "the same command with --resume."
            ) from None
    board.ended("best", "complete", f"val.score {_last_score(folder):.4f}")
    view.say("scoring it on held-out episodes")
    options = {"num_cpus": experiment.tune.cpus_per_trial, "name": f"{run.name}/best scoring"}
    _results([_evaluate.options(**options).remote(folder, arrays, experiment.data)])


def _train_baselines(
    experiment: Experiment, chosen: Experiment, attempt: Attempt, arrays: ArraysRef, cpus: float, view: View
) -> dict[str, Path]:
    """Trains every candidate in a task of its own, as many at a time as the cluster has room for; NAME -> folder.

    The candidate with the best last validation score becomes the baseline, and it alone is scored on test episodes.
    A baseline of which every candidate diverged is said, and left out.
    """
    run = attempt.folder
    models = baselines(experiment, chosen)
    folders = {
        (name, i): run / "baselines" / "candidates" / f"{name}-{i}" for name in models for i in range(len(models[name]))
    }
    _train_all({folder: models[name][i] for (name, i), folder in folders.items()}, arrays, cpus, view)
    made: dict[str, Path] = {}
    scored = []
    for name, tried in models.items():
        best = max(range(len(tried)), key=lambda i, name=name: _last_score(folders[name, i]))  # type: ignore[misc]
        if not (folders[name, best] / "model.safetensors").exists():
            continue
        made[name] = run / "baselines" / name
        if not (made[name] / "metrics.json").exists():
            _copy(attempt, folders[name, best], made[name])
            source = experiment.data.with_tasks(tried[best].data.task_names)
            options = {"num_cpus": cpus, "name": f"{run.name}/{name} scoring"}
            scored.append(_evaluate.options(**options).remote(made[name], arrays, source))
    _results(scored)
    return made


def _results(tasks: Sequence[Any]) -> list[Any]:
    """What tasks return. Raises UserError where a process of theirs is lost more often than Ray starts it again."""
    try:
        return list(ray.get(list(tasks)))
    except RayTaskError:
        raise  # what a task raised is a fault of ours
    except RayError as error:
        raise UserError(
            "train.max_failures: expected fewer losses, got one more of a process or machine "
            f"({first_line(error).rstrip('.')}). Give the same command with --resume."
        ) from None


def _copy(attempt: Attempt, folder: Path, to: Path) -> None:
    """Publishes a copy of a model folder, without the attempts at its training."""
    attempt.remove(to)
    attempt.publish(to, lambda aside: _copy_files(folder, aside))


def _copy_files(folder: Path, to: Path) -> None:
    """As shutil.copytree, which would make the parents of `to`, and with them an attempt's folder that is gone."""
    to.mkdir()
    for path in folder.iterdir():
        if path.is_dir() and not path.name.startswith(PREFIX):
            _copy_files(path, to / path.name)
        elif path.is_file():
            shutil.copy2(path, to / path.name)


def _train_all(models: Mapping[Path, Experiment], arrays: ArraysRef, cpus: float, view: View) -> None:
    """Trains what is not trained yet, each in a task of its own; says which diverged."""
    missing = {folder: model for folder, model in models.items() if not (folder / "model.safetensors").exists()}
    with _watched(missing, view):
        tasks = []
        for folder, model in missing.items():
            folder.mkdir(parents=True, exist_ok=True)
            options = _train_here.options(
                name=_name(folder), num_cpus=cpus, num_gpus=gpus_per_worker(model, 1),
                max_retries=model.train.max_failures, retry_exceptions=[Superseded],
            )  # fmt: skip
            tasks.append(options.remote(model.model_dump(mode="json"), folder, arrays, cpus))
        for folder, reason in zip(missing, _results(tasks), strict=True):
            if reason:
                view.say(f"{folder.parent.name[:-1]} {folder.name} diverged: {reason}")


def _regret(experiment: Experiment, attempt: Attempt, arrays: ArraysRef, cpus: float, view: View) -> dict[str, Any]:
    """Trains what the mode wants to be compared with; `regret` for the summary, or nothing."""
    run = attempt.folder
    models = comparators(experiment)
    folders = {name: run / "baselines" / "comparators" / name for name in models}
    _train_all({folders[name]: model for name, model in models.items()}, arrays, cpus, view)
    found = regret(run / "best", folders) if models else None
    if found is None:
        return {}
    curve = found.pop("curve")
    rows = [{"step": i, "regret": value} for i, value in enumerate(curve, start=1)]
    runs.write_rows(run / "regret.parquet", rows, attempt.publish)
    return {"regret": found | {"best_weights": models[found["best"]].weighting.model_dump()["weights"]}}


def _last_score(folder: Path) -> float:
    """The validation score at the last step; a training that did not get there, or has none, loses to every other."""
    if not (folder / "model.safetensors").exists():
        return -math.inf
    score = runs.read_rows(folder / "history.parquet")[-1]["val.score"]
    return -math.inf if score is None else float(score)


def _name(folder: Path) -> str:
    """RUN/NAME of a training that something is compared with, whose folder is RUN/baselines/candidates/NAME."""
    return f"{folder.parents[2].name}/{folder.name}"


@ray.remote
def _train_here(tree: dict[str, Any], folder: Path, arrays: Arrays, cpus: float) -> str | None:
    """Trains in this process, from the last checkpoint if there is one; returns why it diverged, if it did."""
    experiment = Experiment.model_validate(tree)
    torch.set_num_threads(max(1, int(cpus)))
    host = Host(
        report=lambda metrics: None,
        observe=observer(_name(folder), experiment.data.task_names),
        device=torch.device("cuda" if ray.get_gpu_ids() else "cpu"),
        leaving=machine_leaving,
    )
    try:
        train_loop(experiment, arrays, local_batches(experiment, arrays), host, folder)
    except DivergedError as error:
        return str(error)
    return None


@ray.remote
def _evaluate(folder: Path, arrays: Arrays, source: Source) -> None:
    torch.set_num_threads(max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1))))
    evaluate_folder(folder, arrays, source)


@contextmanager
def _watched(models: Mapping[Path, Experiment], view: View) -> Iterator[None]:
    """Shows how far the trainings in these folders are, from the histories that they write; says which stand still."""
    ended = threading.Event()
    lookout = Lookout(view.say)

    def look() -> None:
        for folder, model in models.items():
            history = runs.read_rows(folder / "history.parquet")
            scores = [row["val.score"] for row in history if row.get("val.score") is not None]
            step, steps = (history[-1]["step"] if history else 0), model.train.steps
            state = "waiting" if not history else "complete" if step == steps else "running"
            view.show(folder.name, Row(step, steps, state, f"val.score {scores[-1]:.4f}" if scores else "", ""))

            if state != "complete":
                lookout.look(folder.name, folder)

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


def _share_of_time(history: Sequence[Mapping[str, Any]], name: str) -> float:
    """The mean of a percentage over the steps, each as long as it took; of steps of older versions 0."""
    seconds = sum(row["seconds"] for row in history)
    return float(sum(row["seconds"] * (row.get(name) or 0.0) for row in history) / seconds)


def _finish(
    attempt: Attempt, about: dict[str, Any], folders: dict[str, Path], started: float, notes: Sequence[Note]
) -> dict[str, Any]:
    run = attempt.folder
    best = next(iter(folders.values()))
    history = runs.read_rows(best / "history.parquet")
    runs.write_rows(run / "history.parquet", history, attempt.publish)
    if not (run / "tensorboard").exists():
        (run / "tensorboard").symlink_to("best/tensorboard")
    rows = table(folders)
    for row in rows:
        row["folder"] = str(Path(row["folder"]).relative_to(run)) if row["folder"] else None
    shares = {name: _share_of_time(history, name) for name in ("data_wait_pct", "communication_pct")}
    said = [note.model_dump() for note in (*notes, *notes_of_models(folders))]
    summary = {**about, "seconds": time.time() - started, **shares, "models": rows, "notes": said}
    runs.write_json(run / "summary.json", summary, attempt.publish)
    write_report(run)
    return summary
