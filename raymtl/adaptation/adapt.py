"""Adapts a trained model to a new support set; starts no Ray."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from raymtl import run_folder
from raymtl.adaptation.examples import (
    AdaptationExamples,
    count_examples,
    draw_episode,
    read_support,
)
from raymtl.adaptation.request import AdaptationRequest
from raymtl.data import Source
from raymtl.data.episodes import on_device
from raymtl.evaluation.prediction import Prediction
from raymtl.evaluation.predictions import image_resize_of, prediction_of, write_predictions
from raymtl.evaluation.thresholds import kept_thresholds, save_thresholds
from raymtl.features.network import load_network, read_by
from raymtl.step.algorithm import Algorithm
from raymtl.storage import formats
from raymtl.tasks import label_counts, metric_sums, metric_values
from raymtl.types import Batch, Episode, Params, Task, UserError


class _Adapted(NamedTuple):
    """An adapted model, and what the model predicts of the query set, by task."""

    params: Params
    after: Mapping[str, Tensor]
    before: Mapping[str, Tensor] | None
    """Without adaptation; None of a learner that cannot predict so."""


def adapt_run(request: AdaptationRequest, steps: int | None = None) -> dict[str, Any]:
    """Adapts RUN/best and writes RUN/adapted/NAME: a model folder and predictions.parquet.

    The support set is a held-out test episode of the source, whose query set is predicted and
    scored, or a file (docs/adapt.md). `steps` are the inner steps, those of the run unless given.
    """
    experiment, algorithm, params = request.load()
    if request.support is None:
        examples = draw_episode(experiment, request.episode)
    else:
        examples = read_support(request.support, experiment, algorithm, request.query, request.task)
    network = load_network(experiment, request.run)
    of_pictures = on_device(examples.episode, "cpu")
    episode = Episode(*(read_by(network, batch) for batch in of_pictures))
    adapted = _adapt(algorithm, params, episode, steps)
    check_finite(examples.domain, adapted.params)
    predictions = [
        _of_task(task, experiment.data, episode.query, adapted, examples)
        for task in algorithm.tasks
        if task.name in adapted.after
    ]
    resize = image_resize_of(experiment.data)

    def write(folder: Path) -> None:
        experiment.save(folder / "config.yaml")
        values = {**adapted.params, **algorithm.constants()}
        formats.save_params(folder / "model.safetensors", values)
        save_thresholds(folder, kept_thresholds(algorithm.tasks))
        path = folder / "predictions.parquet"
        write_predictions(path, predictions, examples.query_origins, resize)

    name = request.name or examples.folder
    folder = run_folder.publish_folder(request.run / "adapted", name, write)
    return {
        "folder": str(folder),
        "domain": examples.domain,
        "adapted": not _are_equal(params, adapted.params),
        "reads_support": algorithm.learner.reads_support,
        "support_examples": count_examples(episode.support),
        "predicted_examples": count_examples(episode.query),
        "notes": [note.model_dump() for note in examples.notes],
        "scores": _scores(algorithm, episode.query, adapted),
    }


@torch.no_grad()
def _adapt(algorithm: Algorithm, params: Params, episode: Episode, steps: int | None) -> _Adapted:
    adapted = algorithm.adapt(params, episode.support, steps)
    after: Mapping[str, Tensor] = {}
    before = None
    if count_examples(episode.query):
        after = algorithm.predict(adapted, episode.query.inputs)
    if after and algorithm.learner.supports_zero_shot:
        unadapted = algorithm.normalised(params, episode.support)
        before = algorithm.predict(unadapted, episode.query.inputs)
    return _Adapted(adapted, after, before)


def check_finite(domain: str, params: Params) -> None:
    """Raises UserError where adapting to the examples of this name diverged."""
    for key, value in params.items():
        if not value.isfinite().all():
            raise UserError(
                f"{domain}: adapting made {key} infinite or no number. Take fewer --steps, or "
                "train with a lower learner.inner_lr."
            )


def _of_task(
    task: Task, source: Source, query: Batch, adapted: _Adapted, examples: AdaptationExamples
) -> Prediction:
    before = None
    if adapted.before is not None:
        before = adapted.before[task.name]
    return prediction_of(
        source,
        task,
        query.targets.get(task.name),
        query.masks.get(task.name),
        before,
        adapted.after[task.name],
    ).with_classes(examples.class_names.get(task.name, ()))


def _are_equal(params: Params, adapted: Params) -> bool:
    """Whether nothing was learned from the support set."""
    if set(params) != set(adapted):
        return False
    return all(torch.equal(value, adapted[key]) for key, value in params.items())


def _scores(
    algorithm: Algorithm, query: Batch, adapted: _Adapted
) -> dict[str, tuple[float | None, float | None]]:
    """Of each metric of the tasks that have labels, before and after; None for one that these do
    not define.
    """
    if not adapted.after:
        return {}
    tasks = algorithm.tasks
    counts = label_counts(tasks, query)
    after = metric_values(tasks, metric_sums(tasks, adapted.after, query), counts)
    before: Mapping[str, Tensor] = {}
    if adapted.before is not None:
        before = metric_values(tasks, metric_sums(tasks, adapted.before, query), counts)
    scores = {}
    for task, count in zip(tasks, counts.tolist(), strict=True):
        for metric in task.metrics:
            key = f"{task.name}.{metric}"
            if count:
                scores[key] = (_finite(before.get(key)), _finite(after[key]))
    return scores


def _finite(value: Tensor | None) -> float | None:
    if value is None or not bool(value.isfinite()):
        return None
    return float(value)
