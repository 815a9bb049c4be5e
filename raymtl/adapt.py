"""Adapts a trained model to a new support set; starts no Ray."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from raymtl import runs
from raymtl.data.episodes import build_episodes, on_device
from raymtl.evaluate import load_model, told
from raymtl.step import Problem
from raymtl.support import read_support
from raymtl.tasks import label_counts, metric_sums, metric_values
from raymtl.types import Batch, Params, Task, UserError


def adapt_run(
    run: Path,
    support: Path | None,
    episode: int,
    steps: int | None,
    name: str | None,
    query: Path | None = None,
    moved: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Adapts RUN/best and writes RUN/adapted/NAME: a model folder and predictions.parquet.

    The support set is a held-out test episode of the source, whose query set is predicted and scored, or a file
    (docs/adapt.md): its labelled rows are the support set, the others are predicted, or those of the file `query`.
    What has labels of these is scored. `moved` says where the run's own data are now (`Source.moved`).
    """
    experiment, problem, params = load_model(run / "best")
    if moved:
        experiment = experiment.model_copy(update={"data": experiment.data.moved(moved)})
    if name is not None and (Path(name).name != name or name in (".", "..")):
        raise UserError(f"--name: expected a plain name for a folder, got '{name}'.")
    if support is None:
        arrays = experiment.data.load()
        drawn, domains = build_episodes(
            experiment.data, arrays, seed=experiment.seed, split="test", step=0, indices=[episode]
        )
        task = tree_map(lambda leaf: leaf[0], drawn[0])
        domain, folder_name = domains[0], f"episode-{episode}"
        classes: Mapping[str, tuple[str, ...]] = {}
    else:
        task, classes = read_support(support, experiment, problem, query)
        domain, folder_name = str(support), support.stem
    task = on_device(task, "cpu")
    with torch.no_grad():
        adapted = problem.adapt(params, task.support, steps)
        after = problem.predict(adapted, task.query.inputs) if len(task.query.inputs) else {}
        unadapted = problem.normalised(params, task.support)
        before = problem.predict(unadapted, task.query.inputs) if after and problem.learner.predicts_unadapted else None
    for key, value in adapted.items():
        if not value.isfinite().all():
            raise UserError(
                f"{domain}: adapting made {key} infinite or no number. Take fewer --steps, or train with a lower "
                "learner.inner_lr."
            )

    def write(folder: Path) -> None:
        experiment.save(folder / "config.yaml")
        runs.save_params(folder / "model.safetensors", adapted)
        runs.write_rows(folder / "predictions.parquet", _predictions(problem, task.query, before, after, classes))

    folder = runs.publish_folder(run / "adapted", name or folder_name, write)
    return {
        "folder": str(folder),
        "domain": domain,
        "support_examples": len(task.support.inputs),
        "predicted_examples": len(task.query.inputs),
        "scores": _scores(problem, task.query, before, after) if after else {},
    }


def _predictions(
    problem: Problem, query: Batch, before: Any, after: Any, classes: Mapping[str, tuple[str, ...]]
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [{"row": index} for index in range(len(query.inputs))]
    for task in problem.tasks:
        names = classes.get(task.name, ())
        for index, row in enumerate(rows):
            known = not query.masks or bool(query.masks[task.name][index])
            row |= _named(task, "target", query.targets[task.name][index] if known else None, names)
            read = {when: None if of is None else task.readable(of[task.name][index : index + 1])[0]
                    for when, of in (("before", before), ("after", after))}  # fmt: skip
            for when, value in read.items():
                row |= _named(task, when, value, names)
            if task.kind == "classification":
                row[f"{task.name}.probability"] = float(after[task.name][index].softmax(-1).max())
    return rows


def _named(task: Task, when: str, value: Tensor | None, names: tuple[str, ...]) -> dict[str, Any]:
    """A class by its name and labels by theirs, where they have any; else as `told` has it."""
    column = f"{task.name}.{when}"
    if value is None or not names or value.ndim > 1:
        return told(column, value)
    if value.ndim:
        return {column: [name for name, there in zip(names, value.tolist(), strict=True) if there == 1]}
    return {column: names[int(value)] if int(value) < len(names) else None}


def _scores(problem: Problem, query: Batch, before: Any, after: Params | Any) -> dict[str, tuple[float | None, float]]:
    counts = label_counts(problem.tasks, query)
    found = [
        None if p is None else metric_values(problem.tasks, metric_sums(problem.tasks, p, query), counts)
        for p in (before, after)
    ]
    labelled = {task.name for task, count in zip(problem.tasks, counts.tolist(), strict=True) if count}
    return {
        name: (None if found[0] is None else float(found[0][name]), float(value))
        for name, value in (found[1] or {}).items()
        if name.rpartition(".")[0] in labelled
    }
