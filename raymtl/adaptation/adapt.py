"""Adapts a trained model to a new support set; starts no Ray."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from raymtl import run_folder
from raymtl.adaptation.examples import Given, count_of, drawn_episode, read_support
from raymtl.data import Source
from raymtl.data.episodes import on_device
from raymtl.evaluation.evaluate import load_model
from raymtl.evaluation.predictions import Said, placed_of, said_of, write_predictions
from raymtl.step.algorithm import Algorithm
from raymtl.storage import formats
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
    task: str | None = None,
) -> dict[str, Any]:
    """Adapts RUN/best and writes RUN/adapted/NAME: a model folder and predictions.parquet.

    The support set is a held-out test episode of the source, whose query set is predicted and
    scored, or a file (docs/adapt.md): its labelled rows are the support set, the others are
    predicted, or those of the file `query`. What has labels of these is scored. `moved` says where
    the run's own data are now (`Source.moved`), `task` of which task alone the file has labels.
    """
    experiment, algorithm, params = load_model(run / "best")
    if moved:
        experiment = experiment.model_copy(update={"data": experiment.data.moved(moved)})
    if name is not None and (Path(name).name != name or name in (".", "..")):
        raise UserError(f"--name: expected a plain name for a folder, got '{name}'.")
    if support is None:
        given = drawn_episode(experiment, episode)
    else:
        read = read_support(support, experiment, algorithm, query, task)
        given = Given(
            str(support), support.stem, read.episode, read.classes, read.asked, read.notes
        )
    part = on_device(given.episode, "cpu")
    with torch.no_grad():
        adapted = algorithm.adapt(params, part.support, steps)
        if count_of(part.query):
            after = algorithm.predict(adapted, part.query.inputs)
        else:
            after = {}
        unadapted = algorithm.normalised(params, part.support)
        if after and algorithm.learner.supports_zero_shot:
            before = algorithm.predict(unadapted, part.query.inputs)
        else:
            before = None
    for key, value in adapted.items():
        if not value.isfinite().all():
            raise UserError(
                f"{given.domain}: adapting made {key} infinite or no number. Take fewer --steps, "
                "or train with a lower learner.inner_lr."
            )
    said = [
        _said(experiment.data, one, part.query, before, after, given.classes)
        for one in algorithm.tasks
        if one.name in after
    ]

    def write(folder: Path) -> None:
        experiment.save(folder / "config.yaml")
        formats.save_params(folder / "model.safetensors", adapted)
        write_predictions(
            folder / "predictions.parquet", said, given.asked, placed_of(experiment.data)
        )

    folder = run_folder.publish_folder(run / "adapted", name or given.folder, write)
    return {
        "folder": str(folder),
        "domain": given.domain,
        "adapted": not _same(params, adapted),
        "support_examples": count_of(part.support),
        "predicted_examples": count_of(part.query),
        "notes": [note.model_dump() for note in given.notes],
        "scores": _scores(algorithm, part.query, before, after) if after else {},
    }


def _same(params: Params, adapted: Params) -> bool:
    """Whether nothing was learned from the support set."""
    return set(params) == set(adapted) and all(
        torch.equal(value, adapted[key]) for key, value in params.items()
    )


def _said(
    source: Source,
    task: Task,
    query: Batch,
    before: Mapping[str, Tensor] | None,
    after: Mapping[str, Tensor],
    classes: Mapping[str, tuple[str, ...]],
) -> Said:
    known = query.masks.get(task.name)
    return said_of(
        source,
        task,
        query.targets.get(task.name),
        known,
        None if before is None else before[task.name],
        after[task.name],
        classes.get(task.name, ()),
    )


def _scores(
    algorithm: Algorithm, query: Batch, before: Any, after: Any
) -> dict[str, tuple[float | None, float | None]]:
    """Of each metric of the tasks that have labels, before and after; None for one that these do
    not define.
    """
    counts = label_counts(algorithm.tasks, query)
    found = [
        None
        if p is None
        else metric_values(algorithm.tasks, metric_sums(algorithm.tasks, p, query), counts)
        for p in (before, after)
    ]
    labelled = {
        task.name for task, count in zip(algorithm.tasks, counts.tolist(), strict=True) if count
    }
    return {
        name: (None if found[0] is None else _finite(found[0][name]), _finite(value))
        for name, value in (found[1] or {}).items()
        if name.rpartition(".")[0] in labelled
    }


def _finite(value: Tensor) -> float | None:
    if bool(value.isfinite()):
        return float(value)
    return None
