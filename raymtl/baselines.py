"""What a winner is measured against, trained by us with the same budget; and the table that sets them side by side."""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raymtl import runs
from raymtl.config import Experiment, parse
from raymtl.data import Source
from raymtl.metrics import delta_m, delta_p
from raymtl.notes import Note

SINGLE = "single-"
ROW = ("score", "tasks", "transductive", "num_parameters", "steps", "train_seconds")


def baselines(experiment: Experiment, winner: Experiment) -> dict[str, tuple[Experiment, ...]]:
    """The models beside the winner, by name; all take as many steps, and as many labelled examples a step, as it.

    `default` is the configuration as written. `joint` has no inner loop: plain multi-task training, which shows what
    adapting is worth. `single-TASK` has one task alone. `one-stage`, where the winner has several, is the winner's
    last one for all the steps; no baseline but `default` has stages. Of several candidates the best on the validation
    split stands for the baseline: with the rates as written and with the winner's, which were searched, so that a
    baseline is not made weak by its rates.
    """
    names = experiment.data.task_names
    models = {"default": (experiment,), "joint": (_joint(experiment), _joint(winner))}
    if winner.stages:
        models["one-stage"] = (_changed(winner, winner.data, {}),)
    if len(names) > 1:
        models |= {f"{SINGLE}{name}": (_alone(experiment, name), _alone(winner, name)) for name in names}
    return models


def comparators(experiment: Experiment) -> dict[str, Experiment]:
    """Trainings on the same stream with fixed weights, by name; none for a mode that does not ask for them."""
    weights = experiment.mode.comparisons(experiment.data.task_names, experiment.seed)
    return {
        f"fixed-{i}": _changed(experiment, experiment.data, {"weighting.name": "static", "weighting.weights": fixed})
        for i, fixed in enumerate(weights)
    }


def regret(own: Path, compared: Mapping[str, Path]) -> dict[str, Any] | None:
    """What the training in `own` lost beyond the best of those it is compared with; None where all of those diverged.

    Read from the histories: the loss of a step is the mean, over the tasks that had labels in it, of their query
    losses before the move. `curve` is the regret after each step.
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
    for row in runs.read_rows(folder / "history.parquet"):
        losses = [value for key, value in row.items() if key.startswith("loss.") and value is not None]
        steps.append(sum(losses) / max(len(losses), 1))
    return list(itertools.accumulate(steps))


def _joint(model: Experiment) -> Experiment:
    return _changed(model, model.data.without_support(), {"learner.name": "maml", "learner.inner_steps": 0})


def _alone(model: Experiment, task: str) -> Experiment:
    plain = {"weighting.name": "static", "weighting.weights": {}, "sharing.name": "hard", "mode.name": "weighted"}
    return _changed(model, model.data.with_tasks((task,)), plain)


def _changed(model: Experiment, data: Source, values: Mapping[str, Any]) -> Experiment:
    """Validated as a whole; without the search, whose metrics may be those of tasks that are no longer there."""
    alone = model.override({**values, "stages": []})
    tree = alone.model_dump(mode="json", exclude={"search", "tune"})
    return parse(tree | {"data": data.model_dump(mode="json")})


def table(folders: Mapping[str, Path]) -> list[dict[str, Any]]:
    """`models` of summary.json from model folders that have been evaluated: NAME -> folder, in their order."""
    metrics = {name: runs.read_json(folder / "metrics.json") for name, folder in folders.items()}
    rows = [
        {"name": name, "folder": str(folders[name]), **{key: metrics[name][key] for key in ROW}}
        for name in metrics
        if not name.startswith(SINGLE)
    ]
    single = {task: m["tasks"][task] for name, m in metrics.items() if name.startswith(SINGLE) for task in m["tasks"]}
    if set(single) != set(rows[0]["tasks"]):
        single = {}  # a single-task model diverged: what it would have scored nobody knows
    if single:
        seen = any(m["transductive"] for name, m in metrics.items() if name.startswith(SINGLE))
        score = _joined_score(single)
        rows.append({"name": "single-task", "folder": None, "score": score, "tasks": single, "transductive": seen})
    for row in rows:
        row["delta_m"] = delta_m(_after(row["tasks"]), _after(single)) if single else None
        row["delta_p"] = delta_p(_after(row["tasks"]), _after(single)) if single else None
    return rows


def notes_of_models(folders: Mapping[str, Path]) -> list[Note]:
    """The `notes` of the models' metrics.json, in their order: NAME -> folder, the run's own model first.

    Those of the other models name the model; one that the first has too is not repeated.
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
    found = runs.read_json(path) if path.exists() else {}
    return [Note(**note) for note in found.get("notes") or ()]


def _joined_score(single: Mapping[str, Any]) -> dict[str, Any]:
    """The mean over tasks of their first metrics.

    The models' errors in the same episodes are not independent; the mean half-width bounds the interval whatever they
    have in common.
    """
    first = [next(iter(metrics.values()))["after"] for metrics in single.values()]
    mean, ci95 = (sum(value[key] for value in first) / len(first) for key in ("mean", "ci95"))
    return {"before": None, "after": {"mean": mean, "ci95": ci95}, "gain": None}


def _after(tasks: Mapping[str, Any]) -> dict[str, dict[str, tuple[float, bool]]]:
    return {
        task: {
            name: (metric["after"]["mean"], metric["higher_is_better"])
            for name, metric in metrics.items()
            if metric["ratio_scale"]
        }
        for task, metrics in tasks.items()
    }
