"""Scores of a trained model with intervals, on every held-out example or on test episodes. Starts no Ray."""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from raymtl import config, runs
from raymtl.config import Experiment
from raymtl.data import Arrays, Source, Split
from raymtl.data.episodes import build_episodes, on_device
from raymtl.held_out import NUM_GROUPS, HeldOutSplit, Scored, held_out_split, scored
from raymtl.intervals import Estimator, Partition, Range, combine
from raymtl.notes import Note
from raymtl.scoring import Tally, primary_metrics, range_of, signs
from raymtl.step import HowToRun, Problem, over_episodes
from raymtl.tasks import label_counts
from raymtl.types import Batch, Episode, Metric, Params, Task, UserError

EXAMPLES = 12
RELATED = 120
"""Tasks that are compared with each other at most; the comparisons are their square."""
SHOWN_NUMBERS = 16384
"""Of an output with values for pixels in examples.parquet; of larger ones every second pixel is kept, or fewer."""
JACKKNIFE = "jackknife.parquet"
SCORE = "score"


def load_model(folder: Path) -> tuple[Experiment, Problem, dict[str, Tensor]]:
    """What a model folder holds. Raises UserError where it is none or damaged."""
    if not (folder / "model.safetensors").is_file():
        raise UserError(f"{folder}: expected a trained model, got none yet. Continue the run with --resume.")
    experiment = config.load(folder / "config.yaml")
    problem = experiment.build()
    return experiment, problem, runs.load_params(folder / "model.safetensors", problem.init_params())


@torch.no_grad()
def evaluate(
    experiment: Experiment,
    problem: Problem,
    params: Params,
    arrays: Arrays,
    *,
    split: Split = "test",
    episodes: int | None = None,
) -> "Evaluation":
    """Scores a model on a split: on every example once, or where it adapts on `episodes` episodes.

    Adapted parameters see the support set alone. The scores are transductive where batch norms take the statistics of
    the query set, by `encoder.transductive`.
    """
    own = problem.learner.num_steps
    steps: list[int | None] = list(range(2 * own + 1)) if own else [None]
    number = episodes or experiment.evaluate.test_episodes
    held = held_out_split(experiment, problem, arrays, split, number, steps=len(steps))
    device = next(iter(params.values())).device
    tallies = {step: Tally(problem.tasks, held.num_groups, device) for step in steps}
    for one in scored(held, problem, params, steps=steps):
        tallies[one.steps].add(one)
    estimators = {
        step or 0: _with_score(problem.tasks, tally.estimators(held.whole)) for step, tally in tallies.items()
    }
    after, tally = estimators[own], tallies[own or None]
    metrics: dict[str, Any] = {
        "split": split,
        "episodes": None if held.sections else number,
        "scored": _scored(held, tally),
        "transductive": problem.transductive,
        "inner_steps": own,
        "num_parameters": sum(value.numel() for value in params.values()),
        **_intervals(problem, estimators),
        "whole": sorted(held.whole),
        "notes": [note.model_dump() for note in score_notes(held, after, tally)],
    }
    return Evaluation(metrics, _examples(experiment, problem, params, arrays, split), after)


class Evaluation(NamedTuple):
    """The content of metrics.json, the rows of examples.parquet, and the scores after adaptation by their names."""

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
        return np.mean([sign * value for (sign, _), value in zip(first, values, strict=True)], axis=0)

    return {**estimators, SCORE: combine(mean, [estimator for _, estimator in first])}


def _scored(held: HeldOutSplit, tally: Tally) -> dict[str, Any]:
    """What stands behind the scores: how many members of each population, labelled examples, and a sentence."""
    source, split = held.source, held.split
    examples = {task.name: int(count) for task, count in zip(tally.tasks, tally.counts.tolist(), strict=True)}
    populations = {own.name: own.size for own in source.populations(held.arrays, split)}
    members = ", ".join(_number(size, name) for name, size in populations.items() if size is not None)
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


def score_notes(held: HeldOutSplit, estimators: Mapping[str, Estimator], tally: Tally) -> Iterable[Note]:
    """What a reader of the scores should know: tasks without one, and predictions that are all one class."""
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
    """The name of a class in quotes, or its number; of a multi-label task whether the labels are there."""
    if task.target_shape and not task.dense:
        return "that every label is there" if number else "that no label is there"
    return f"'{names[number]}'" if names else f"class {number}"


def _intervals(problem: Problem, estimators: Mapping[int, Mapping[str, Estimator]]) -> dict[str, Any]:
    """Scores with 95 % intervals, before and after adaptation and along the inner steps."""
    after = problem.learner.num_steps
    before = 0 if problem.learner.predicts_unadapted else None
    scores: dict[str, Any] = {task.name: {} for task in problem.tasks}
    curve: dict[str, Any] = {"steps": list(estimators)}
    for task in problem.tasks:
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
    kinds = {range_of(next(iter(task.metrics.values()))) for task in problem.tasks}
    kind = "unit" if kinds == {"unit"} else "any"
    score = _around([own[SCORE] for own in estimators.values()], before, after, kind)
    return {"tasks": scores, "score": score, "curve": curve}


def _around(along: Sequence[Estimator], before: int | None, after: int, kind: Range) -> dict[str, Any]:
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
    """Each metric and the loss of these examples [N], all labelled, with their 95 % intervals over examples."""
    scored_by = task._replace(metrics={**task.metrics, "loss": Metric(task.loss, False)})
    number = min(len(target), NUM_GROUPS[0])
    tally = Tally([scored_by], {"row": number}, "cpu")
    rows = torch.arange(len(target))[:, None] % number
    batch = Batch(torch.zeros(len(target)), {task.name: target.cpu()}, {})
    tally.add(Scored(None, {task.name: prediction.cpu()}, batch, {task.name: {"row": rows}}))
    estimators = tally.estimators(frozenset())
    return {
        name: estimators[f"{task.name}.{name}"].interval(range_of(metric)) for name, metric in scored_by.metrics.items()
    }


def _examples(
    experiment: Experiment, problem: Problem, params: Params, arrays: Arrays, split: Split
) -> list[dict[str, Any]]:
    """One query input of each of the first episodes, with what is predicted before and after adaptation."""
    raw, domains = build_episodes(
        experiment.data, arrays, seed=experiment.seed, split=split, step=0, indices=range(EXAMPLES)
    )
    rows: list[dict[str, Any]] = []
    names = iter(domains)
    for stack in raw:
        own = list(islice(names, len(next(iter(stack.query.targets.values())))))
        if isinstance(stack.query.inputs, Tensor):  # tasks with inputs of their own have none in common
            rows += _examples_of(problem, params, stack, own)
    return rows


def _examples_of(problem: Problem, params: Params, raw: Episode, domains: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of one stack."""
    assert isinstance(raw.query.inputs, Tensor)
    episodes = on_device(raw, next(iter(params.values())).device)

    def predict(episode: Episode) -> dict[str, Tensor]:
        adapted = problem.adapt(params, episode.support)
        return problem.predict(adapted, episode.query.inputs)

    after = over_episodes(predict, episodes, HowToRun())
    before = (
        over_episodes(
            lambda e: problem.predict(problem.normalised(params, e.support), e.query.inputs), episodes, HowToRun()
        )
        if problem.learner.predicts_unadapted
        else None
    )
    rows = []
    for index, (domain, example) in enumerate(zip(domains, raw.query.inputs[:, 0], strict=True)):
        row: dict[str, Any] = {
            "domain": domain,
            "input": example.flatten().tolist(),
            "shape": list(example.shape),
        }
        for task in problem.tasks:
            if task.name in raw.query.masks and not raw.query.masks[task.name][index, 0]:
                continue
            row |= told(f"{task.name}.target", raw.query.targets[task.name][index, 0])
            row |= told(f"{task.name}.before", task.readable(before[task.name][index, :1])[0] if before else None)
            row |= told(f"{task.name}.after", task.readable(after[task.name][index, :1])[0])
        rows.append(row)
    return rows


def told(column: str, value: Tensor | None) -> dict[str, Any]:
    """What a row of a file has in the column: a number; or a list of them, row-major, and its shape beside it."""
    if value is None:
        return {column: None}
    if not value.ndim:
        return {column: float(value)}
    every = math.ceil(math.sqrt(value.numel() / SHOWN_NUMBERS))
    if value.ndim > 1 and every > 1:
        value = value[..., ::every, ::every]
    return {column: value.double().flatten().tolist(), f"{column}.shape": list(value.shape)}


@torch.no_grad()
def embeddings(
    experiment: Experiment, problem: Problem, params: Params, arrays: Arrays, *, split: Split, episodes: int
) -> list[dict[str, Any]]:
    """What the learner knows the tasks of held-out episodes by, the rows of embeddings.parquet; none where nothing."""
    rows: list[dict[str, Any]] = []
    for index in range(episodes):  # one by one, for those that differ in shape come in another order
        (stack,), (domain,) = build_episodes(
            experiment.data, arrays, seed=experiment.seed, split=split, step=0, indices=[index]
        )
        support = tree_map(lambda leaf: leaf[0], on_device(stack, next(iter(params.values())).device).support)
        embedded = problem.learner.embed(problem.model, params, support)
        if embedded is None:
            return []
        labelled = label_counts(problem.tasks, support) > 0
        rows += [
            {"split": split, "episode": index, "task": task.name, "domain": domain, "embedding": own}
            for task, own, known in zip(problem.tasks, embedded.tolist(), labelled.tolist(), strict=True)
            if known
        ]
    return rows


@torch.no_grad()
def relations(problem: Problem, params: Params, embedded: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What the learner holds the first of these tasks to be to each other, the rows of relations.parquet."""
    shown = embedded[:RELATED]
    if not shown:
        return []
    like = next(iter(params.values()))
    matrix = problem.learner.relations(params, like.new_tensor([row["embedding"] for row in shown]))
    if matrix is None:
        return []
    about = ("episode", "task", "domain")
    return [
        {**{key: row[key] for key in about}, "relations": line}
        for row, line in zip(shown, matrix.tolist(), strict=True)
    ]


def evaluate_folder(folder: Path, arrays: Arrays, source: Source) -> None:
    """Scores a model folder on the test episodes of `source`; writes its metrics.json and what is beside it."""
    experiment, problem, params = load_model(folder)
    experiment = experiment.model_copy(update={"data": source})
    metrics, examples, estimators = evaluate(experiment, problem, params, arrays)
    runs.write_rows(folder / JACKKNIFE, jackknife_rows(estimators))
    history = runs.read_rows(folder / "history.parquet")
    metrics["steps"] = len(history)
    metrics["train_seconds"] = sum(row["seconds"] for row in history)
    metrics["notes"] += [note.model_dump() for note in history_notes(problem.tasks, history)]
    runs.write_rows(folder / "examples.parquet", examples)
    number = experiment.evaluate.test_episodes
    val, test = (
        embeddings(experiment, problem, params, arrays, split=split, episodes=number) for split in ("val", "test")
    )
    if test:
        runs.write_rows(folder / "embeddings.parquet", [*val, *test])
    related = relations(problem, params, test)
    if related:
        runs.write_rows(folder / "relations.parquet", related)
    runs.write_json(folder / "metrics.json", metrics)


def history_notes(tasks: Sequence[Task], history: Sequence[Mapping[str, Any]]) -> Iterable[Note]:
    """Which scores never moved while the model was trained."""
    for name in primary_metrics(tasks):
        values = [row[f"val.{name}"] for row in history if row.get(f"val.{name}") is not None]
        if len(values) > 2 and len(set(values)) == 1:
            task, _, metric = name.rpartition(".")
            text = f"{metric} on validation was {values[0]:.4g} at every one of {len(values)} scorings"
            yield Note(place=f"task '{task}'", text=text, key="train.lr")


def jackknife_rows(estimators: Mapping[str, Estimator]) -> list[dict[str, Any]]:
    """The rows of jackknife.parquet: what each score is without a group of the held-out examples."""
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    for name, estimator in estimators.items():
        for partition, own in estimator.partitions.items():
            for group, (value, share) in enumerate(zip(own.left_out.tolist(), own.shares.tolist(), strict=True)):
                row = rows.setdefault((partition, group), {"partition": partition, "group": group})
                row |= {name: value, f"share.{name}": share}
    return list(rows.values())


def read_estimators(folder: Path, metrics: Mapping[str, Any]) -> dict[str, Estimator]:
    """The scores of a model folder that has been evaluated, by their names; empty where no jackknife was kept."""
    rows = runs.read_rows(folder / JACKKNIFE)
    found = {}
    values = {SCORE: metrics["score"]["after"]["mean"]}
    for task, named in metrics["tasks"].items():
        values |= {f"{task}.{name}": own["after"]["mean"] for name, own in named.items()}
    for name, value in values.items():
        if not rows or value is None:
            continue
        partitions = {}
        for partition in dict.fromkeys(row["partition"] for row in rows):
            own = [row for row in rows if row["partition"] == partition and row.get(name) is not None]
            if own:
                left_out, shares = (np.array([row[key] for row in own]) for key in (name, f"share.{name}"))
                partitions[partition] = Partition(left_out, shares)
        found[name] = Estimator(value, partitions, frozenset(metrics.get("whole", ())))
    return found
