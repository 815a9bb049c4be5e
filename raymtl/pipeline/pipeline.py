"""From a configuration to a finished run folder: search, train the winner, measure it, write the
report.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import optuna
import ray
from optuna.trial import FrozenTrial

from raymtl import run_folder
from raymtl.cluster.capacity import workers_key
from raymtl.config import Experiment
from raymtl.data import Arrays
from raymtl.distributed import waiting
from raymtl.distributed.connection import connected
from raymtl.distributed.trainer import TrainerSpec, current_capacity, train, why_given_up
from raymtl.evaluation.baselines import notes_of_models, table
from raymtl.pipeline.capacity import check_components, ensure_machines
from raymtl.pipeline.comparisons import (
    ArraysRef,
    kept_score,
    regret_of_run,
    results_of,
    score_remotely,
    train_baselines,
)
from raymtl.pipeline.features import embed
from raymtl.pipeline.merging import merge_baselines
from raymtl.pipeline.monitor import watched
from raymtl.pipeline.search import STATES, run_search, winner
from raymtl.reporting.ray_dashboard.dashboard import Dashboard
from raymtl.reporting.terminal import View
from raymtl.schema.component_modules import shipment
from raymtl.schema.distributions import searched_values
from raymtl.storage import formats
from raymtl.storage.fence import Attempt
from raymtl.storage.notes import Note
from raymtl.training import left_out
from raymtl.types import UserError


def tune(experiment: Experiment, run: Path, arrays: Arrays, address: str | None) -> dict[str, Any]:
    """Searches, trains the winner and its baselines, evaluates all; returns the content of
    summary.json.

    `arrays` are what the data loaded, before anything was started or made: there may be something
    wrong with them. `run` may be a folder in which this stopped half-way: what is done is not done
    again.
    """
    started = time.time()
    with (
        _at_work(experiment, run, "tune") as attempt,
        View(f"raymtl tune {experiment.name}") as view,
        _ray(address, view),
        _board(run, view) as board,
    ):
        ensure_machines(experiment, run, view, searching=True)
        settings = current_capacity().plan(experiment)
        view.say(f"{settings.trials} trials, {settings.concurrency} at a time; run folder {run}")
        own_notes = _about_builders(experiment)
        for note in own_notes:
            view.say(str(note))
        arrays, about_features = embed(experiment, attempt, arrays, view)
        study = run_search(experiment, attempt, arrays, settings, view, board)
        best = winner(study, experiment)
        chosen = experiment.override(best.user_attrs["values"])
        also = ""
        if experiment.tune.chosen_baselines:
            also = "its baselines and "
        view.say(
            f"trial {best.number} wins on the validation split; now {also}the winner itself train "
            "on Ray Train"
        )
        shared = ray.put(arrays)
        compared = train_baselines(experiment, chosen, attempt, shared, settings.cpus, view)
        merged = merge_baselines(experiment, chosen, attempt, shared, settings.cpus, view)
        _train_best(chosen, run, shared, view, board)
        about_regret = regret_of_run(chosen, attempt, shared, settings.cpus, view)
    about = _about_search(experiment, study, best)
    folders = {"winner": run / "best", **compared, **merged.folders}
    on_data = (*_notes_on_data(experiment, arrays, folders), *about_features)
    notes = (*on_data, *chosen.notes(), *own_notes, *merged.notes)
    return _finish(attempt, about | about_regret, folders, started, notes)


def _about_builders(experiment: Experiment) -> tuple[Note, ...]:
    """The note on builders that a search is given, and its trials do not use."""
    builders = experiment.data.builders
    if builders == "auto" or not builders:
        return ()
    text = f"they build their own episodes; the {builders} builders are for the winner's training"
    return (Note(place="trials", text=text, key="data.builders"),)


def _about_search(experiment: Experiment, study: optuna.Study, best: FrozenTrial) -> dict[str, Any]:
    """What summary.json holds of the search."""
    states = [STATES[trial.state] for trial in study.trials]
    return {
        "name": experiment.name,
        "command": "tune",
        "seed": experiment.seed,
        "trials": {state: states.count(state) for state in ("complete", "pruned", "failed")},
        "objectives": dict(zip(experiment.tune.metrics, experiment.tune.modes, strict=True)),
        "best_trial": best.number,
        "best_values": best.user_attrs["values"],
        "pareto": sorted(trial.number for trial in study.best_trials),
    }


def train_run(
    experiment: Experiment, run: Path, arrays: Arrays, address: str | None
) -> dict[str, Any]:
    """Trains the configuration itself on loaded data and evaluates it; returns the content of
    summary.json.
    """
    started = time.time()
    with (
        _at_work(experiment, run, "train") as attempt,
        View(f"raymtl train {experiment.name}") as view,
        _ray(address, view),
        _board(run, view) as board,
    ):
        ensure_machines(experiment, run, view, searching=False)
        least, most = experiment.train.num_min_workers, experiment.train.workers
        workers = str(most)
        if least < most:
            workers = f"{least} to {most}"
        view.say(f"{experiment.train.steps} steps on {workers} workers; run folder {run}")
        for note in experiment.notes():
            view.say(str(note))
        arrays, about_features = embed(experiment, attempt, arrays, view)
        shared = ray.put(arrays)
        _train_best(experiment, run, shared, view, board)
        about_regret = regret_of_run(
            experiment, attempt, shared, experiment.train.cpus_per_worker, view
        )
    about = {"name": experiment.name, "command": "train", "seed": experiment.seed, **about_regret}
    folders = {"model": run / "best"}
    on_data = (*_notes_on_data(experiment, arrays, folders), *about_features)
    notes = (*on_data, *experiment.notes())
    return _finish(attempt, about, folders, started, notes)


@contextmanager
def _at_work(experiment: Experiment, run: Path, command: str) -> Iterator[Attempt]:
    """Holds the run, and begins it if it is new."""
    with run_folder.held(run) as attempt:
        if not (run / "config.yaml").exists():
            formats.write_json(
                run / "environment.json",
                run_folder.environment(experiment, command),
                attempt.publish,
            )
            attempt.publish(run / "config.yaml", experiment.save)
        yield attempt


@contextmanager
def _ray(address: str | None, view: View) -> Iterator[None]:
    if ray.is_initialized():
        view.say("using the Ray that this process is connected to")
    elif address:
        view.say(f"connecting to Ray at {address}")
    else:
        view.say("starting Ray on this machine")
    with connected(address):
        check_components()
        yield


def _board(run: Path, view: View) -> closing[Dashboard]:
    return closing(Dashboard(run, view.say))


def _train_best(
    experiment: Experiment, run: Path, arrays: ArraysRef, view: View, board: Dashboard
) -> None:
    folder = run / "best"
    if (folder / "metrics.json").exists():
        return
    folder.mkdir(exist_ok=True)
    gpus = current_capacity().gpus_per_worker(experiment, experiment.train.num_min_workers)
    if not gpus and experiment.train.device == "auto" and ray.cluster_resources().get("GPU"):
        key = workers_key(experiment)
        view.say(f"fewer GPUs than {key}, so they train on CPUs; lower {key} to use the GPUs")
    board.on_trial_start("best", searched_values(experiment.search, experiment.flat()))
    spec = TrainerSpec(
        name=f"{run.name}/best",
        ray_folder=run / ".ray",
        workers=experiment.train.workers,
        min_workers=experiment.train.num_min_workers,
        cpus=experiment.train.cpus_per_worker,
        gpus=gpus,
        builders=experiment.data.builders,
    )
    with watched({folder: experiment}, view):
        try:
            train(experiment, arrays, folder, spec)
        except ray.train.TrainingFailedError as error:
            why = why_given_up(error)
            if why is None:
                raise
            raise UserError(
                f"{folder}: the training was given up, since {why}. When the cluster has room for "
                "its workers, give the same command with --resume."
            ) from None
    board.on_trial_end("best", "complete", f"val.score {kept_score(folder, experiment):.4f}")
    view.say("scoring it on held-out episodes")
    options = {"num_cpus": experiment.tune.cpus_per_trial, "name": f"{run.name}/best scoring"}
    score = score_remotely.options(**options)
    results_of([score.remote(folder, arrays, experiment.data, shipment())])


def _share_of_time(history: Sequence[Mapping[str, Any]], name: str) -> float:
    """The mean of a percentage over the steps, each as long as it took; of steps of older versions
    0.
    """
    seconds = sum(row["seconds"] for row in history)
    return float(sum(row["seconds"] * (row.get(name) or 0.0) for row in history) / seconds)


def _notes_on_data(
    experiment: Experiment, arrays: Arrays, folders: Mapping[str, Path]
) -> tuple[Note, ...]:
    """The notes on what was loaded, and on what the trainings in these folders left out."""
    notes = (*experiment.data.notes(arrays), *experiment.notes_on_steps(arrays))
    of_stream = left_out.note_of(folders.values(), experiment.data)
    if of_stream is None:
        return notes
    return (*notes, of_stream)


def _finish(
    attempt: Attempt,
    about: dict[str, Any],
    folders: dict[str, Path],
    started: float,
    notes: Sequence[Note],
) -> dict[str, Any]:
    run = attempt.folder
    best = next(iter(folders.values()))
    history = formats.read_rows(best / "history.parquet")
    formats.write_rows(run / "history.parquet", history, attempt.publish)
    if not (run / "tensorboard").exists():
        (run / "tensorboard").symlink_to("best/tensorboard")
    rows = table(folders)
    for row in rows:
        if row["folder"]:
            row["folder"] = str(Path(row["folder"]).relative_to(run))
        else:
            row["folder"] = None
    shares = {
        name: _share_of_time(history, name) for name in ("data_wait_pct", "communication_pct")
    }
    read = [row["read_mb"] for row in history if row.get("read_mb") is not None]
    if read:
        shares["read_mb"] = sum(read) / len(read)
    built = [row for row in history if row.get("builder_cpu_pct") is not None]
    if built:
        shares["builder_cpu_pct"] = _share_of_time(built, "builder_cpu_pct")
    on_builders = [note for note in [waiting.read(best)] if note is not None]
    every_note = (*notes, *on_builders, *notes_of_models(folders))
    said = [note.model_dump() for note in every_note]
    summary = {**about, "seconds": time.time() - started, **shares, "models": rows, "notes": said}
    formats.write_json(run / "summary.json", summary, attempt.publish)
    from raymtl.reporting.html import write_report  # takes a third of a second; the start need not

    write_report(run)
    return summary
