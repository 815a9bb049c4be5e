"""The models that a winner is compared with, trained with the same budget, and the table that
compares them.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from raymtl.config import Experiment, parse
from raymtl.data import Source
from raymtl.evaluation.evaluate import SCORE, difference, read_estimators
from raymtl.evaluation.intervals import Estimator, combine
from raymtl.evaluation.relative import deltas_against
from raymtl.storage import formats
from raymtl.storage.notes import Note

SINGLE = "single-"
ALONE = "single-task"
ROW = (
    "score",
    "tasks",
    "scored",
    "adapts",
    "transductive",
    "num_parameters",
    "steps",
    "train_seconds",
)


def baselines(experiment: Experiment, winner: Experiment) -> dict[str, tuple[Experiment, ...]]:
    """The baselines of a winner, by name. Each has as many steps as the winner, with as many
    labelled examples.

    `default` is the configuration as written. `joint` has no inner loop: it is plain multi-task
    training, which shows what adapting is worth; `learner.name: none` is that already.
    `single-TASK` is trained on one task only.
    `one-stage` exists if the winner has several stages, and is the winner's last stage for all
    steps; only `default` has stages. A baseline is trained with the configuration's rates and with
    the winner's, which were searched. The candidate that is better on the validation split becomes
    the baseline, so that bad rates do not make it weak.

    `tune.baselines` chooses among them; `one-stage` goes with `default`.
    """
    names, chosen = experiment.data.task_names, experiment.tune.chosen_baselines
    models: dict[str, tuple[Experiment, ...]] = {}
    if "default" in chosen:
        models["default"] = (experiment,)
    if "joint" in chosen and experiment.learner.reads_support:
        models["joint"] = (_joint(experiment), _joint(winner))
    if "default" in chosen and winner.stages:
        models["one-stage"] = (_changed(winner, winner.data, {}),)
    if "single" in chosen and len(names) > 1:
        models |= {
            f"{SINGLE}{name}": (alone(experiment, name), alone(winner, name)) for name in names
        }
    return models


class Trainings(NamedTuple):
    """The trainings of a run for one purpose, each with at most `steps` outer steps."""

    name: str
    number: int
    steps: int


def planned(experiment: Experiment, *, searching: bool) -> list[Trainings]:
    """All trainings of `raymtl tune` or `raymtl train`. ASHA may end trials sooner.

    The number of a baseline counts its candidates.
    """
    numbers = {"model": 1}
    if searching:
        candidates = {
            name: len(models) for name, models in baselines(experiment, experiment).items()
        }
        numbers = {"trials": experiment.tune.trials, "winner": 1, **candidates}
    numbers |= dict.fromkeys(comparators(experiment), 1)
    return [Trainings(name, number, experiment.train.steps) for name, number in numbers.items()]


def comparators(experiment: Experiment) -> dict[str, Experiment]:
    """Trainings on the same stream with fixed weights, by name; none for a mode that does not ask
    for them.
    """
    weights = experiment.mode.comparisons(experiment.data.task_names, experiment.seed)
    return {
        f"fixed-{i}": _changed(
            experiment, experiment.data, {"weighting.name": "static", "weighting.weights": fixed}
        )
        for i, fixed in enumerate(weights)
    }


def regret(own: Path, compared: Mapping[str, Path]) -> dict[str, Any] | None:
    """How much larger the loss of the training in `own` was than that of the best comparator; None
    if all of them diverged.

    Read from the histories: the loss of a step is the mean, over the tasks that had labels in it,
    of their query losses before the move. `curve` is the regret after each step.
    """
    mine = _lost(own)
    lost = {name: _lost(folder) for name, folder in compared.items()}
    ended = {name: losses for name, losses in lost.items() if len(losses) == len(mine)}
    if not ended:
        return None
    best = min(ended, key=lambda name: ended[name][-1])
    curve = [a - b for a, b in zip(mine, ended[best], strict=True)]
    return {
        "regret": curve[-1],
        "loss_per_step": mine[-1] / len(mine),
        "best": best,
        "fixed_loss_per_step": {name: losses[-1] / len(losses) for name, losses in ended.items()},
        "curve": curve,
    }


def _lost(folder: Path) -> list[float]:
    """The losses of all steps up to each, summed."""
    steps = []
    for row in formats.read_rows(folder / "history.parquet"):
        losses = [
            value for key, value in row.items() if key.startswith("loss.") and value is not None
        ]
        steps.append(sum(losses) / max(len(losses), 1))
    return list(itertools.accumulate(steps))


def _joint(model: Experiment) -> Experiment:
    return _changed(
        model, model.data.as_supervised(), {"learner.name": "maml", "learner.inner_steps": 0}
    )


def alone(model: Experiment, task: str) -> Experiment:
    """The configuration for one of its tasks, on one trunk."""
    plain = {
        "weighting.name": "static",
        "weighting.weights": {},
        "sharing.name": "hard",
        "mode.name": "weighted",
    }
    return _changed(model, model.data.select_tasks((task,)), plain)


def together(single: Experiment, data: Source) -> Experiment:
    """The configuration of a single-task model for all tasks of `data`."""
    return _changed(single, data, {})


def _changed(model: Experiment, data: Source, values: Mapping[str, Any]) -> Experiment:
    """Validated as a whole; without the search, whose metrics may be those of tasks that are no
    longer there.
    """
    alone = model.override({**values, "stages": []})
    tree = alone.model_dump(mode="json", exclude={"search", "tune"})
    return parse(tree | {"data": data.model_dump(mode="json")})


def table(folders: Mapping[str, Path]) -> list[dict[str, Any]]:
    """`models` of summary.json from model folders that have been evaluated: NAME -> folder, in
    their order.

    The single-task models form one row. Every model has `against`: the differences of its scores to
    those of every other model, with intervals on the same held-out examples. Its deltas are
    relative to the single-task models.
    """
    metrics = {name: formats.read_json(folder / "metrics.json") for name, folder in folders.items()}
    estimators = {name: read_estimators(folders[name], own) for name, own in metrics.items()}
    rows: list[dict[str, Any]] = []
    for name, own in metrics.items():
        if not name.startswith(SINGLE):
            row: dict[str, Any] = {"name": name, "folder": str(folders[name])}
            rows.append(row | {key: own.get(key) for key in ROW})
    single = {name: own for name, own in metrics.items() if name.startswith(SINGLE)}
    tasks = {task: own["tasks"][task] for own in single.values() for task in own["tasks"]}
    # Where a task is missing its model diverged: nobody knows what it would have scored.
    if tasks and set(tasks) == set(rows[0]["tasks"]):
        estimators[ALONE] = _joined_estimators([estimators[name] for name in single])
        score, estimators[ALONE][SCORE] = _joined_score(tasks, estimators[ALONE])
        transductive = any(own["transductive"] for own in single.values())
        adapts = any(own.get("adapts", True) for own in single.values())
        row = {"name": ALONE, "folder": None, "score": score, "tasks": tasks}
        rows.append(row | {"adapts": adapts, "transductive": transductive})
    for row in rows:
        own_estimators = estimators[row["name"]]
        others = [other["name"] for other in rows if other is not row]
        row["against"] = {
            other: _differences(own_estimators, estimators[other]) for other in others
        }
        row |= deltas_against(row["tasks"], own_estimators, tasks, estimators.get(ALONE))
    return rows


def _joined_estimators(models: Sequence[Mapping[str, Estimator]]) -> dict[str, Estimator]:
    """The scores of all these models' tasks."""
    joined: dict[str, Estimator] = {}
    for estimators in models:
        joined |= estimators
    joined.pop(SCORE, None)
    return joined


def _differences(own: Mapping[str, Estimator], other: Mapping[str, Estimator]) -> dict[str, Any]:
    """Score -> what it is above the other's, with the interval; without those that one of them
    lacks.
    """
    return {name: difference(own[name], other[name]) for name in own if name in other}


def notes_of_models(folders: Mapping[str, Path]) -> list[Note]:
    """The `notes` of the models' metrics.json, in their order: NAME -> folder, the run's own model
    first.

    Notes of the other models name the model. A note that the first model has too is not repeated.
    """
    (_, best), *others = folders.items()
    first = _notes_of(best)
    notes = [*first]
    for name, folder in others:
        own = [note for note in _notes_of(folder) if note not in first]
        notes += [note.model_copy(update={"place": f"{name}, {note.place}"}) for note in own]
    return notes


def _notes_of(folder: Path) -> list[Note]:
    path = folder / "metrics.json"
    if not path.exists():
        return []
    return [Note(**note) for note in formats.read_json(path).get("notes") or ()]


def _joined_score(
    tasks: Mapping[str, Any], estimators: Mapping[str, Estimator]
) -> tuple[dict[str, Any], Estimator]:
    """The mean over tasks of their first metrics, an error with a minus; as a `score`, and to be
    compared.
    """
    first = {task: next(iter(named.items())) for task, named in tasks.items()}
    known = [
        (task, name, one) for task, (name, one) in first.items() if one["after"]["mean"] is not None
    ]
    signs = [1 if one["higher_is_better"] else -1 for _, _, one in known]
    own = [estimators.get(f"{task}.{name}") for task, name, _ in known]
    if not known or not all(own):
        values = [
            sign * one["after"]["mean"] for sign, (_, _, one) in zip(signs, known, strict=True)
        ]
        if values:
            mean = sum(values) / len(values)
        else:
            mean = None
        return {"before": None, "after": {"mean": mean, "ci95": None}, "gain": None}, Estimator(
            mean or math.nan, {}
        )
    joined = combine(
        lambda values: np.mean(
            [sign * value for sign, value in zip(signs, values, strict=True)], axis=0
        ),
        [one for one in own if one is not None],
    )
    return {"before": None, "after": joined.interval("any"), "gain": None}, joined
