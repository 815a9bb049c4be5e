"""Scores of a trained model with intervals, on every held-out example or on test episodes. Starts
no Ray.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
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
from raymtl.evaluation.scores import Tally, primary_metrics, range_of, signs
from raymtl.notes import Note
from raymtl.step.algorithm import Algorithm
from raymtl.storage import formats
from raymtl.types import Batch, Metric, Params, Task, UserError

JACKKNIFE = "jackknife.parquet"


SCORE = "score"


def load_model(folder: Path) -> tuple[Experiment, Algorithm, dict[str, Tensor]]:
    """What a model folder holds. Raises UserError where it is none or damaged."""
    if not (folder / "model.safetensors").is_file():
        raise UserError(
            f"{folder}: expected a trained model, got none yet. Continue the run with --resume."
        )
    experiment = config.load(folder / "config.yaml")
    algorithm = experiment.build()
    return (
        experiment,
        algorithm,
        formats.load_params(folder / "model.safetensors", algorithm.init_params()),
    )


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
    """Scores a model on a split: on every example once, or where it adapts on `episodes` episodes.

    Adapted parameters see the support set alone. The scores are transductive where batch norms take
    the statistics of the query set, by `encoder.transductive`.
    """
    own = algorithm.learner.num_steps
    steps: list[int | None]
    if own:
        steps = list(range(2 * own + 1))
    else:
        steps = [None]
    number = episodes or experiment.evaluate.test_episodes
    held = held_out_split(experiment, algorithm, arrays, split, number, steps=len(steps))
    device = next(iter(params.values())).device
    tallies = {step: Tally(algorithm.tasks, held.num_groups, device) for step in steps}
    for one in scored(held, algorithm, params, steps=steps):
        tallies[one.steps].add(one)
    estimators = {
        step or 0: _with_score(algorithm.tasks, tally.estimators(held.whole))
        for step, tally in tallies.items()
    }
    after, tally = estimators[own], tallies[own or None]
    metrics: dict[str, Any] = {
        "split": split,
        "episodes": None if held.sections else number,
        "scored": _scored(held, tally),
        "transductive": algorithm.transductive,
        "inner_steps": own,
        "num_parameters": sum(value.numel() for value in params.values()),
        **_intervals(algorithm, estimators),
        "whole": sorted(held.whole),
        "notes": [note.model_dump() for note in score_notes(held, after, tally)],
    }
    return Evaluation(metrics, example_rows(experiment, algorithm, params, arrays, split), after)


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


def _scored(held: HeldOutSplit, tally: Tally) -> dict[str, Any]:
    """What stands behind the scores: how many members of each population, labelled examples, and a
    sentence.
    """
    source, split = held.source, held.split
    examples = {
        task.name: int(count)
        for task, count in zip(tally.tasks, tally.counts.tolist(), strict=True)
    }
    populations = {own.name: own.size for own in source.populations(held.arrays, split)}
    members = ", ".join(
        _number(size, name) for name, size in populations.items() if size is not None
    )
    if held.sections:
        number = sum(len(section.rows) for section in held.sections)
        text = f"Every one of the {number} {split} examples was scored once"
        text += f" ({members})." if list(populations) != ["row"] else "."
    else:
        text = f"{held.num_episodes} {split} episodes were scored; an episode is {source.about_episodes}"
        text += f". Behind them stand {members}." if members else "."
    return {"examples": examples, "populations": populations, "text": text}


def _number(size: int | None, name: str) -> str:
    """`74 rows`, `1 row`, `12 classes of kind`."""
    if size == 1:
        return f"1 {name}"
    first, of, rest = name.partition(" of ")
    plural = first + ("es" if first.endswith(("s", "x", "ch")) else "s")
    return f"{size} {plural}{of}{rest}"


def score_notes(
    held: HeldOutSplit, estimators: Mapping[str, Estimator], tally: Tally
) -> Iterable[Note]:
    """What a reader of the scores should know: tasks without one, and predictions that are all one
    class.
    """
    tasks, split = tally.tasks, held.split
    for task, count in zip(tasks, tally.counts.tolist(), strict=True):
        name, place = f"{task.name}.{next(iter(task.metrics))}", f"task '{task.name}'"
        if not count:
            text = f"no label among the scored examples of {split}, so it has no score and is left out of the mean"
            yield Note(place=place, text=text, key="data.split")
        elif math.isnan(estimators[name].value):
            metric = name.rpartition(".")[2]
            text = f"{metric} is not defined on the {split} labels, which are all alike, and is left out of the mean"
            yield Note(place=place, text=text, key=f"data.tasks.{task.name}.metric")
        decided = tally.decisions.get(task.name, set())
        if len(decided) == 1:
            (number,), names = decided, held.source.class_names(task.name)
            text = f"every prediction on {split} is {_class_name(task, names, number)}"
            yield Note(place=place, text=text, key="train.steps")


def _class_name(task: Task, names: Sequence[str], number: int) -> str:
    """The name of a class in quotes, or its number; of a multi-label task whether the labels are
    there.
    """
    if task.target_shape and not task.is_dense:
        if number:
            return "that every label is there"
        return "that no label is there"
    if names:
        return f"'{names[number]}'"
    return f"class {number}"


def _intervals(
    algorithm: Algorithm, estimators: Mapping[int, Mapping[str, Estimator]]
) -> dict[str, Any]:
    """Scores with 95 % intervals, before and after adaptation and along the inner steps."""
    after = algorithm.learner.num_steps
    if algorithm.learner.supports_zero_shot:
        before = 0
    else:
        before = None
    scores: dict[str, Any] = {task.name: {} for task in algorithm.tasks}
    curve: dict[str, Any] = {"steps": list(estimators)}
    for task in algorithm.tasks:
        for name, metric in task.metrics.items():
            key, kind = f"{task.name}.{name}", range_of(metric)
            along = [own[key] for own in estimators.values()]
            scores[task.name][name] = {
                "higher_is_better": metric.higher_is_better,
                "ratio_scale": metric.ratio_scale,
                "shown": metric.shown or name == next(iter(task.metrics)),
                **_around(along, before, after, kind),
            }
            points = [estimator.interval(kind) for estimator in along]
            curve[key] = {part: [point[part] for point in points] for part in ("mean", "ci95")}
    kinds = {range_of(next(iter(task.metrics.values()))) for task in algorithm.tasks}
    if kinds == {"unit"}:
        kind = "unit"
    else:
        kind = "any"
    score = _around([own[SCORE] for own in estimators.values()], before, after, kind)
    return {"tasks": scores, "score": score, "curve": curve}


def _around(
    along: Sequence[Estimator], before: int | None, after: int, kind: Range
) -> dict[str, Any]:
    adapted = along[after]
    if before is None:
        return {"before": None, "after": adapted.interval(kind), "gain": None}
    return {
        "before": along[before].interval(kind),
        "after": adapted.interval(kind),
        "gain": difference(adapted, along[before]),
    }


def difference(one: Estimator, other: Estimator) -> dict[str, float | None]:
    """What the first is above the second, with the interval of the difference on the same examples."""
    return combine(lambda values: values[0] - values[1], [one, other]).interval("any")


def scores_of(task: Task, prediction: Tensor, target: Tensor) -> dict[str, dict[str, float | None]]:
    """Each metric and the loss of these examples [N], all labelled, with their 95 % intervals over
    examples.
    """
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
    """Scores a model folder on the test episodes of `source`; writes its metrics.json and what is
    beside it.
    """
    experiment, algorithm, params = load_model(folder)
    experiment = experiment.model_copy(update={"data": source})
    metrics, examples, estimators = evaluate(experiment, algorithm, params, arrays)
    formats.write_rows(folder / JACKKNIFE, jackknife_rows(estimators))
    history = formats.read_rows(folder / "history.parquet")
    metrics["steps"] = len(history)
    metrics["train_seconds"] = sum(row["seconds"] for row in history)
    metrics["notes"] += [note.model_dump() for note in history_notes(algorithm.tasks, history)]
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


def history_notes(tasks: Sequence[Task], history: Sequence[Mapping[str, Any]]) -> Iterable[Note]:
    """Which scores never moved while the model was trained."""
    for name in primary_metrics(tasks):
        values = [row[f"val.{name}"] for row in history if row.get(f"val.{name}") is not None]
        if len(values) > 2 and len(set(values)) == 1:
            task, _, metric = name.rpartition(".")
            text = (
                f"{metric} on validation was {values[0]:.4g} at every one of {len(values)} scorings"
            )
            yield Note(place=f"task '{task}'", text=text, key="train.lr")


def jackknife_rows(estimators: Mapping[str, Estimator]) -> list[dict[str, Any]]:
    """The rows of jackknife.parquet: what each score is without a group of the held-out examples."""
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
    """The scores of a model folder that has been evaluated, by their names; empty where no
    jackknife was kept.
    """
    rows = formats.read_rows(folder / JACKKNIFE)
    found = {}
    values = {SCORE: metrics["score"]["after"]["mean"]}
    for task, named in metrics["tasks"].items():
        values |= {f"{task}.{name}": own["after"]["mean"] for name, own in named.items()}
    for name, value in values.items():
        if not rows or value is None:
            continue
        partitions = {}
        for partition in dict.fromkeys(row["partition"] for row in rows):
            own = [
                row for row in rows if row["partition"] == partition and row.get(name) is not None
            ]
            if own:
                left_out, shares = (
                    np.array([row[key] for row in own]) for key in (name, f"share.{name}")
                )
                partitions[partition] = Partition(left_out, shares)
        found[name] = Estimator(value, partitions, frozenset(metrics.get("whole", ())))
    return found
