"""What a winner is measured against, trained by us with the same budget; and the table that sets them side by side."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raymtl import runs
from raymtl.config import Experiment
from raymtl.metrics import delta_m, delta_p

PREFIX = "single-"


def baselines(experiment: Experiment, winner: Experiment) -> dict[str, Experiment]:
    """The models beside the winner, by name; all take as many steps and episodes as it.

    `default` is the configuration as written. `joint` is the same without an inner loop: plain multi-task training,
    which shows what adapting is worth. `single-TASK` has one task alone and the winner's learner and rates, which
    were searched, so that it is not made weak by rates that were not.
    """
    plain = {"weighting.name": "static", "weighting.weights": {}}
    models = {
        "default": experiment,
        "joint": experiment.override({"learner.name": "maml", "learner.inner_steps": 0, **plain}),
    }
    names = experiment.data.task_names
    if len(names) > 1:
        for name in names:
            alone = winner.override({**plain, "sharing.name": "hard"}).model_copy(
                update={"data": winner.data.with_tasks((name,))}
            )
            models[f"{PREFIX}{name}"] = alone
    return models


def table(folders: Mapping[str, Path]) -> list[dict[str, Any]]:
    """`models` of summary.json from model folders that have been evaluated: NAME -> folder, in their order."""
    metrics = {name: runs.read_json(folder / "metrics.json") for name, folder in folders.items()}
    rows = [
        {"name": name, "folder": str(folders[name]), **{key: metrics[name][key] for key in ROW}}
        for name in metrics
        if not name.startswith(PREFIX)
    ]
    single = {task: m["tasks"][task] for name, m in metrics.items() if name.startswith(PREFIX) for task in m["tasks"]}
    if single:
        rows.append({"name": "single-task", "folder": None, "score": None, "tasks": single})
    for row in rows:
        row["delta_m"] = delta_m(_after(row["tasks"]), _after(single)) if single else None
        row["delta_p"] = delta_p(_after(row["tasks"]), _after(single)) if single else None
    return rows


ROW = ("score", "tasks", "num_parameters", "steps", "train_seconds")


def _after(tasks: Mapping[str, Any]) -> dict[str, dict[str, tuple[float, bool]]]:
    return {
        task: {name: (metric["after"]["mean"], metric["higher_is_better"]) for name, metric in metrics.items()}
        for task, metrics in tasks.items()
    }
