"""Scores of a trained model with intervals, on every held-out example or on test episodes. Starts
no Ray.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from raymtl import config
from raymtl.config import Experiment
from raymtl.data import Arrays, Source, Split
from raymtl.evaluation.embeddings import embeddings, relations
from raymtl.evaluation.examples import example_rows
from raymtl.evaluation.held_out import NUM_GROUPS, HeldOutSplit, Scored, held_out_split, scored
from raymtl.evaluation.intervals import Estimator, Partition, Range, combine
from raymtl.evaluation.kept import kept_notes
from raymtl.evaluation.merging.record import merged_notes
from raymtl.evaluation.score_notes import describe_scored, history_notes, score_notes
from raymtl.evaluation.scores import Tally, primary_metrics, range_of, signs
from raymtl.evaluation.thresholds import (
    choose_thresholds,
    decided_by,
    save_thresholds,
    with_kept_thresholds,
)
from raymtl.step.algorithm import Algorithm
from raymtl.storage import formats
from raymtl.types import Batch, Metric, Params, Task, UserError

JACKKNIFE = "jackknife.parquet"


SCORE = "score"


def load_model(folder: Path) -> tuple[Experiment, Algorithm, dict[str, Tensor]]:
    """Loads the experiment, the algorithm and the parameters of a model folder.

    Raises UserError if the folder is not a model folder, or is damaged.
    """
    if not (folder / "model.safetensors").is_file():
        raise UserError(
            f"{folder}: expected a trained model, got none yet. Continue the run with --resume."
        )
    experiment = config.load(folder / "config.yaml")
    algorithm = experiment.build(pretrained=False)
    expected = {**algorithm.init_params(), **algorithm.constants()}
    values = formats.load_params(folder / "model.safetensors", expected)
    return experiment, with_kept_thresholds(algorithm, folder), algorithm.take(values)


@torch.no_grad()
def evaluate(
    experiment: Experiment,
    algorithm: Algorithm,
    params: Params,
    arrays: Arrays,
    *,
    split: Split = "test",
    episodes: int | None = None,
) -> "Evaluation":
    """Scores a model on a split: on every example once or, if the model adapts, on `episodes`
    episodes.

    Adaptation uses only the support set. The scores are transductive if batch norms use the
    statistics of the query set (`encoder.transductive`).
    """
    num_steps = algorithm.learner.num_steps
    steps: list[int | None] = [None]
    if num_steps:
        steps = list(range(2 * num_steps + 1))
    number = episodes or experiment.evaluate.test_episodes
    held = held_out_split(experiment, algorithm, arrays, split, number, steps=len(steps))
    tallies = _tallies(held, algorithm, params, steps)
    estimators = {
        step or 0: _with_score(algorithm.tasks, tally.estimators(held.whole))
        for step, tally in tallies.items()
    }
    after, tally = estimators[num_steps], tallies[num_steps or None]
    metrics: dict[str, Any] = {
        "split": split,
        "episodes": _num_scored_episodes(held),
        "scored": describe_scored(held, tally),
        "transductive": algorithm.transductive,
        "adapts": algorithm.uses_support,
        "inner_steps": num_steps,
        "num_parameters": sum(value.numel() for value in params.values()),
        **_intervals(algorithm, estimators),
        "whole": sorted(held.whole),
        "notes": [note.model_dump() for note in score_notes(held, after, tally)],
    }
    return Evaluation(metrics, example_rows(experiment, algorithm, params, arrays, split), after)


def _tallies(
    held: HeldOutSplit, algorithm: Algorithm, params: Params, steps: Sequence[int | None]
) -> dict[int | None, Tally]:
    """The sums of the scores after each number of inner steps."""
    device = next(iter(params.values())).device
    tallies = {step: Tally(algorithm.tasks, held.num_groups, device) for step in steps}
    for batch in scored(held, algorithm, params, steps=steps):
        tallies[batch.steps].add(batch)
    return tallies


def _num_scored_episodes(held: HeldOutSplit) -> int | None:
    """None where every example is scored once instead of episodes."""
    if held.sections:
        return None
    return held.num_episodes


class Evaluation(NamedTuple):
    """The content of metrics.json, the rows of examples.parquet, and the scores after adaptation by
    their names.
    """

    metrics: dict[str, Any]
    examples: list[dict[str, Any]]
    estimators: Mapping[str, Estimator]


def _with_score(tasks: Sequence[Task], estimators: Mapping[str, Estimator]) -> dict[str, Estimator]:
    """The same and `score`, the mean over the tasks that have one of their first metrics."""
    first = [
        (sign, estimators[name])
        for sign, name in zip(signs(tasks), primary_metrics(tasks), strict=True)
        if not math.isnan(estimators[name].value)
    ]
    if not first:
        return {**estimators, SCORE: Estimator(math.nan, {})}

    def mean(values: Sequence[np.ndarray]) -> np.ndarray:
        mean_values: np.ndarray = np.mean(
            [sign * value for (sign, _), value in zip(first, values, strict=True)], axis=0
        )
        return mean_values

    return {**estimators, SCORE: combine(mean, [estimator for _, estimator in first])}


def _intervals(
    algorithm: Algorithm, estimators: Mapping[int, Mapping[str, Estimator]]
) -> dict[str, Any]:
    """Scores with 95 % intervals, before and after adaptation and along the inner steps."""
    after = algorithm.learner.num_steps
    before = None
    if algorithm.learner.supports_zero_shot:
        before = 0
    scores: dict[str, Any] = {task.name: {} for task in algorithm.tasks}
    curve: dict[str, Any] = {"steps": list(estimators)}
    for task in algorithm.tasks:
        for name, metric in task.metrics.items():
            key, kind = f"{task.name}.{name}", range_of(metric)
            by_step = [of_step[key] for of_step in estimators.values()]
            scores[task.name][name] = {
                "higher_is_better": metric.higher_is_better,
                "ratio_scale": metric.ratio_scale,
                "shown": metric.shown or name == next(iter(task.metrics)),
                **_before_and_after(by_step, before, after, kind),
            }
            intervals = [estimator.interval(kind) for estimator in by_step]
            curve[key] = {
                "mean": [interval["mean"] for interval in intervals],
                "ci95": [interval["ci95"] for interval in intervals],
            }
    kinds = {range_of(next(iter(task.metrics.values()))) for task in algorithm.tasks}
    score_kind: Range = "any"
    if kinds == {"unit"}:
        score_kind = "unit"
    by_step = [of_step[SCORE] for of_step in estimators.values()]
    score = _before_and_after(by_step, before, after, score_kind)
    return {"tasks": scores, "score": score, "curve": curve}


def _before_and_after(
    by_step: Sequence[Estimator], before: int | None, after: int, kind: Range
) -> dict[str, Any]:
    """The intervals of a score at two numbers of inner steps, and of its gain from one to the
    other.
    """
    adapted = by_step[after]
    if before is None:
        return {"before": None, "after": adapted.interval(kind), "gain": None}
    return {
        "before": by_step[before].interval(kind),
        "after": adapted.interval(kind),
        "gain": difference(adapted, by_step[before]),
    }


def difference(one: Estimator, other: Estimator) -> dict[str, float | None]:
    """The first score minus the second, with the interval of the difference."""
    return combine(lambda values: values[0] - values[1], [one, other]).interval("any")


def scores_of(task: Task, prediction: Tensor, target: Tensor) -> dict[str, dict[str, float | None]]:
    """Each metric and the loss of N labelled examples, with 95 % intervals over the examples."""
    scored_by = task._replace(metrics={**task.metrics, "loss": Metric(task.loss, False)})
    number = min(len(target), NUM_GROUPS[0])
    tally = Tally([scored_by], {"row": number}, "cpu")
    rows = torch.arange(len(target))[:, None] % number
    batch = Batch(torch.zeros(len(target)), {task.name: target.cpu()}, {})
    tally.add(Scored(None, {task.name: prediction.cpu()}, batch, {task.name: {"row": rows}}))
    estimators = tally.estimators(frozenset())
    return {
        name: estimators[f"{task.name}.{name}"].interval(range_of(metric))
        for name, metric in scored_by.metrics.items()
    }


def evaluate_folder(folder: Path, arrays: Arrays, source: Source) -> None:
    """Scores a model folder on the test split of `source`, and writes its metrics.json and the
    tables beside it. Before, it chooses the thresholds of decisions on the validation split.
    """
    experiment, algorithm, params = load_model(folder)
    algorithm = algorithm._replace(tasks=experiment.data.make_tasks())  # that decide at 1/2 as yet
    experiment = experiment.model_copy(update={"data": source})
    thresholds = choose_thresholds(experiment, algorithm, params, arrays)
    save_thresholds(folder, thresholds)
    algorithm = decided_by(algorithm, thresholds)
    metrics, examples, estimators = evaluate(experiment, algorithm, params, arrays)
    formats.write_rows(folder / JACKKNIFE, jackknife_rows(estimators))
    history = formats.read_rows(folder / "history.parquet")
    metrics["steps"] = len(history)
    metrics["train_seconds"] = sum(row["seconds"] for row in history)
    notes = [*history_notes(algorithm.tasks, history), *kept_notes(experiment.train, history)]
    notes += merged_notes(folder)
    metrics["notes"] += [note.model_dump() for note in notes]
    formats.write_rows(folder / "examples.parquet", examples)
    number = experiment.evaluate.test_episodes
    val, test = (
        embeddings(experiment, algorithm, params, arrays, split=split, episodes=number)
        for split in ("val", "test")
    )
    if test:
        formats.write_rows(folder / "embeddings.parquet", [*val, *test])
    related = relations(algorithm, params, test)
    if related:
        formats.write_rows(folder / "relations.parquet", related)
    formats.write_json(folder / "metrics.json", metrics)


def jackknife_rows(estimators: Mapping[str, Estimator]) -> list[dict[str, Any]]:
    """The rows of jackknife.parquet: each score without each group of the held-out examples."""
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    for name, estimator in estimators.items():
        for partition, own in estimator.partitions.items():
            for group, (value, share) in enumerate(
                zip(own.left_out.tolist(), own.shares.tolist(), strict=True)
            ):
                row = rows.setdefault((partition, group), {"partition": partition, "group": group})
                row |= {name: value, f"share.{name}": share}
    return list(rows.values())


def read_estimators(folder: Path, metrics: Mapping[str, Any]) -> dict[str, Estimator]:
    """The scores of a model folder that has been evaluated, by their names; empty if the folder has
    no jackknife.parquet.
    """
    rows = formats.read_rows(folder / JACKKNIFE)
    values = {SCORE: metrics["score"]["after"]["mean"]}
    for task, scores in metrics["tasks"].items():
        for metric, score in scores.items():
            values[f"{task}.{metric}"] = score["after"]["mean"]
    whole = frozenset(metrics.get("whole", ()))
    estimators = {}
    for name, value in values.items():
        if rows and value is not None:
            estimators[name] = Estimator(value, _partitions(rows, name), whole)
    return estimators


def _partitions(rows: Sequence[Mapping[str, Any]], name: str) -> dict[str, Partition]:
    """What a score is without the groups of each partition, of the rows of jackknife.parquet."""
    partitions = {}
    for partition in dict.fromkeys(row["partition"] for row in rows):
        groups = [
            row for row in rows if row["partition"] == partition and row.get(name) is not None
        ]
        if groups:
            left_out = np.array([row[name] for row in groups])
            shares = np.array([row[f"share.{name}"] for row in groups])
            partitions[partition] = Partition(left_out, shares)
    return partitions
