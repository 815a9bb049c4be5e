"""What a run folder holds, read once: complete, interrupted, searched or only trained."""

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from raymtl import config
from raymtl.config import Experiment
from raymtl.evaluation.baselines import notes_of_models
from raymtl.storage import formats

TRIAL_FACTS = ("number", "state", "step", "seconds", "reason", "num_parameters")
STATES = ("complete", "pruned", "failed", "running")

Row = Mapping[str, Any]


class RunData(NamedTuple):
    """A run folder in memory. Of an interrupted run, `summary` is what is known so far and
    `complete` is False.
    """

    experiment: Experiment
    summary: Mapping[str, Any]
    complete: bool
    environment: Mapping[str, Any]
    trials: Sequence[Row]
    history: Sequence[Row]
    history_of: str
    metrics: Mapping[str, Mapping[str, Any]]
    """Name of a model in the result table -> its metrics.json."""
    examples: Sequence[Row]
    embeddings: Sequence[Row]
    """Those of the test episodes."""
    relations: Sequence[Row]
    study: optuna.Study | None

    @property
    def searched(self) -> bool:
        """Whether it is a run of `raymtl tune`."""
        return bool(self.summary["command"] == "tune")

    @property
    def objectives(self) -> dict[str, str]:
        """Metric -> `max` or `min`."""
        return dict(self.summary.get("objectives") or {})


def read_run(folder: Path) -> RunData:
    """Reads what is there. Raises UserError where a file is damaged or config.yaml is missing."""
    experiment = config.load(folder / "config.yaml")
    trials = formats.read_rows(folder / "trials.parquet")
    complete = (folder / "summary.json").exists()
    if complete:
        summary = formats.read_json(folder / "summary.json")
    else:
        summary = _so_far(folder, experiment, trials)
    models = {model["name"]: model.get("folder") for model in summary["models"]}
    history, history_of = _history(folder, summary)
    return RunData(
        experiment=experiment,
        summary=summary,
        complete=complete,
        environment=_json(folder / "environment.json"),
        trials=trials,
        history=history,
        history_of=history_of,
        metrics={
            name: found
            for name, inside in models.items()
            if inside and (found := _metrics(folder / inside))
        },
        examples=formats.read_rows(folder / "best" / "examples.parquet"),
        embeddings=[
            row
            for row in formats.read_rows(folder / "best" / "embeddings.parquet")
            if row["split"] == "test"
        ],
        relations=formats.read_rows(folder / "best" / "relations.parquet"),
        study=_study(folder / "study.journal"),
    )


def searched_names(trials: Iterable[Row]) -> list[str]:
    """The columns of trials.parquet that hold searched values: neither facts nor metrics."""
    names = dict.fromkeys(key for row in trials for key in row)
    return [name for name in names if name not in TRIAL_FACTS and not name.startswith("val.")]


def finite(value: Any) -> bool:
    """Whether it is a number that can be drawn and compared."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def drawable(values: Sequence[float], mode: str) -> list[float]:
    """The same values, those far worse than the bulk put at its edge, so that one diverging trial
    hides no other.

    Far is three interquartile ranges beyond the worse quartile.
    """
    if len(values) < 4:
        return list(values)
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    if mode == "max":
        return [max(value, low - 3 * (high - low)) for value in values]
    return [min(value, high + 3 * (high - low)) for value in values]


def pareto_numbers(trials: Iterable[Row], objectives: Mapping[str, str]) -> list[int]:
    """The complete trials that no other one beats or equals in every objective while beating it in
    one.
    """
    points = {}
    for row in trials:
        if row["state"] == "complete" and all(finite(row.get(name)) for name in objectives):
            points[row["number"]] = _point(row, objectives)
    front = []
    for number, point in points.items():
        if not any(_dominates(other, point) for other in points.values()):
            front.append(number)
    return front


def _dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether the first point is nowhere lower than the other and somewhere higher."""
    return one != other and all(a >= b for a, b in zip(one, other, strict=True))


def _point(row: Row, objectives: Mapping[str, str]) -> tuple[float, ...]:
    """The objectives of a trial, the better the higher."""
    values = []
    for name, mode in objectives.items():
        if mode == "max":
            values.append(row[name])
        else:
            values.append(-row[name])
    return tuple(values)


def _so_far(folder: Path, experiment: Experiment, trials: Sequence[Row]) -> dict[str, Any]:
    """The parts of summary.json that an interrupted run already shows."""
    searched = bool(trials) or (folder / "study.journal").exists()
    command, best = "train", "model"
    if searched:
        command, best = "tune", "winner"
    compared = ("default", "joint", "task_arithmetic", "ties")
    folders = {best: "best"} | {name: f"baselines/{name}" for name in compared}
    models = []
    for name, inside in folders.items():
        scores = _metrics(folder / inside)
        if scores:
            model = {"name": name, "folder": inside}
            models.append(model | {key: scores[key] for key in ("score", "tasks", "transductive")})
    notes = [*experiment.data.notes({})]
    notes += notes_of_models({name: folder / inside for name, inside in folders.items()})
    summary: dict[str, Any] = {
        "name": experiment.name,
        "command": command,
        "seed": experiment.seed,
        "notes": [note.model_dump() for note in notes],
        "models": models,
    }
    if searched:
        summary |= _search_so_far(experiment, trials)
    return summary


def _search_so_far(experiment: Experiment, trials: Sequence[Row]) -> dict[str, Any]:
    """How many trials are in each state, and the best of the complete ones."""
    counts = Counter(row["state"] for row in trials)
    objectives = dict(zip(experiment.tune.metrics, experiment.tune.modes, strict=True))
    first, mode = next(iter(objectives.items()))
    complete = [row for row in trials if row["state"] == "complete" and finite(row.get(first))]
    best_trial, best_values = None, {}
    if complete:
        best_of = min
        if mode == "max":
            best_of = max
        best = best_of(complete, key=lambda row: row[first])
        best_trial = best["number"]
        best_values = {
            name: best[name] for name in searched_names(trials) if best[name] is not None
        }
    return {
        "trials": {state: counts[state] for state in STATES},
        "objectives": objectives,
        "best_trial": best_trial,
        "best_values": best_values,
        "pareto": pareto_numbers(trials, objectives),
    }


def _history(folder: Path, summary: Mapping[str, Any]) -> tuple[list[dict[str, Any]], str]:
    """The training of the best model, or of the best trial where that is not there yet; and whose
    it is.
    """
    rows = formats.read_rows(folder / "history.parquet") or formats.read_rows(
        folder / "best" / "history.parquet"
    )
    best = summary.get("best_trial")
    if rows or best is None:
        if summary["command"] == "tune":
            return rows, "the best model"
        return rows, "the model"
    rows = formats.read_rows(folder / "trials" / f"{best:04d}" / "history.parquet")
    return rows, f"trial {best}, the best so far"


def _metrics(folder: Path) -> dict[str, Any]:
    return _json(folder / "metrics.json")


def _json(path: Path) -> dict[str, Any]:
    if path.exists():
        return formats.read_json(path)
    return {}


def _study(journal: Path) -> optuna.Study | None:
    # Optuna makes an empty file where there is none, so the file is looked for first.
    if not journal.exists():
        return None
    storage = JournalStorage(JournalFileBackend(str(journal)))
    names = optuna.get_all_study_names(storage)
    if names:
        return optuna.load_study(study_name=names[0], storage=storage)
    return None
