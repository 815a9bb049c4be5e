"""Adapt, then score: on validation episodes while training, on test episodes in the end. Starts no Ray."""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from raymtl import config, runs
from raymtl.collective import Workers
from raymtl.config import Experiment
from raymtl.data import Arrays, Source, Split
from raymtl.data.episodes import build_episodes, on_device
from raymtl.step import HowToRun, Problem, over_episodes
from raymtl.tasks import label_counts, loss_sums, metric_names, metric_sums
from raymtl.types import Episode, MetaBatch, Params, UserError

EPISODES_AT_ONCE = 20
EXAMPLES = 12
RELATED = 120
"""Tasks that are compared with each other at most; the comparisons are their square."""


def validation_scores(
    experiment: Experiment, problem: Problem, params: Params, arrays: Arrays, how: HowToRun, workers: Workers
) -> dict[str, float]:
    """`val.*` after adaptation, equal on all workers: each scores its share, sums and counts are added up."""
    tasks = problem.tasks
    device = next(iter(params.values())).device
    share = workers.share(experiment.evaluate.val_episodes)
    sums = torch.zeros(len(metric_names(tasks)) + 2 * len(tasks), dtype=torch.float64, device=device)
    for episodes, _ in _episodes(experiment, arrays, "val", share, device):
        sums += over_episodes(partial(_sums, problem, params, steps=None), episodes, how).double().sum(0)
    metrics, losses, counts = workers.sum(sums).split([len(metric_names(tasks)), len(tasks), len(tasks)])
    per_metric = torch.cat([counts[i].expand(len(task.metrics)) for i, task in enumerate(tasks)])
    means = dict(zip(metric_names(tasks), (metrics / per_metric).tolist(), strict=True))
    return {
        "val.score": sum(means[name] for name in primary_metrics(problem)) / len(tasks),
        "val.loss": float((losses / counts).sum()),
        **{f"val.{name}": value for name, value in means.items()},
    }


def primary_metrics(problem: Problem) -> list[str]:
    """The first metric of each task, those that a score is the mean of."""
    return [f"{task.name}.{next(iter(task.metrics))}" for task in problem.tasks]


def _sums(problem: Problem, params: Params, episode: Episode, *, steps: int | None) -> Tensor:
    """Metric sums, loss sums and label counts on the query set after `steps` inner steps, [M + 2 K]."""
    unadapted = steps == 0 and problem.learner.predicts_unadapted
    support = episode.support
    adapted = problem.normalised(params, support) if unadapted else problem.adapt(params, support, steps)
    predictions = problem.predict(adapted, episode.query.inputs)
    tasks, query = problem.tasks, episode.query
    parts = (metric_sums(tasks, predictions, query), loss_sums(tasks, predictions, query), label_counts(tasks, query))
    return torch.cat([part.float() for part in parts])


def _episodes(
    experiment: Experiment, arrays: Arrays, split: Split, indices: range, device: torch.device | str
) -> Iterator[tuple[MetaBatch, list[str]]]:
    """Held-out episodes in groups; they are those of step 0, whatever was trained."""
    for start in range(indices.start, indices.stop, EPISODES_AT_ONCE):
        group = range(start, min(start + EPISODES_AT_ONCE, indices.stop))
        episodes, domains = build_episodes(
            experiment.data, arrays, seed=experiment.seed, split=split, step=0, indices=group
        )
        yield on_device(episodes, device), domains


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
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The scores of docs/run-folder.md's metrics.json, and the rows of its examples.parquet.

    Adapted parameters see the support set alone. The scores are transductive where batch norms take the statistics of
    the query set, by `encoder.transductive`.
    """
    number = episodes or experiment.evaluate.test_episodes
    own = problem.learner.num_steps
    steps = list(range(2 * own + 1)) if own else [0]
    device = next(iter(params.values())).device
    # [steps, episodes, M + 2 K]
    table = torch.cat(
        [
            torch.stack(
                [
                    over_episodes(partial(_sums, problem, params, steps=s if own else None), group, HowToRun())
                    for s in steps
                ]
            )
            for group, _ in _episodes(experiment, arrays, split, range(number), device)
        ],
        dim=1,
    )
    result: dict[str, Any] = {
        "split": split,
        "episodes": number,
        "transductive": problem.transductive,
        "inner_steps": own,
        "num_parameters": sum(value.numel() for value in params.values()),
        **_intervals(problem, table.double().cpu(), steps),
    }
    return result, _examples(experiment, problem, params, arrays, split)


def _intervals(problem: Problem, table: Tensor, steps: Sequence[int]) -> dict[str, Any]:
    """Means over episodes with 95 % intervals, before and after adaptation and along the inner steps."""
    tasks = problem.tasks
    counts = table[..., -len(tasks) :]
    after = steps.index(problem.learner.num_steps)
    before = 0 if problem.learner.predicts_unadapted else None
    scores: dict[str, Any] = {}
    curve: dict[str, Any] = {"steps": list(steps)}
    per_episode: dict[str, Tensor] = {}
    column = 0
    for index, task in enumerate(tasks):
        scores[task.name] = {}
        for name, metric in task.metrics.items():
            values = table[..., column] / counts[..., index]  # [steps, episodes]
            per_episode[f"{task.name}.{name}"] = values
            scores[task.name][name] = {
                "higher_is_better": metric.higher_is_better,
                "ratio_scale": metric.ratio_scale,
                **_around(values, before, after),
            }
            along = [mean_and_interval(at) for at in values]
            curve[f"{task.name}.{name}"] = {key: [point[key] for point in along] for key in ("mean", "ci95")}
            column += 1
    score = torch.stack([per_episode[name] for name in primary_metrics(problem)]).nanmean(0)
    return {"tasks": scores, "score": _around(score, before, after), "curve": curve}


def _around(values: Tensor, before: int | None, after: int) -> dict[str, Any]:
    if before is None:
        return {"before": None, "after": mean_and_interval(values[after]), "gain": None}
    return {
        "before": mean_and_interval(values[before]),
        "after": mean_and_interval(values[after]),
        "gain": mean_and_interval(values[after] - values[before]),
    }


def mean_and_interval(values: Tensor) -> dict[str, float]:
    """Mean of [N] and the half-width of its 95 % interval, 1.96 standard errors.

    nan in `values`, an episode without labels of the task, does not count.
    """
    values = values[~values.isnan()]
    return {"mean": float(values.mean()), "ci95": 1.96 * float(values.std()) / math.sqrt(len(values))}


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
            row[f"{task.name}.target"] = float(raw.query.targets[task.name][index, 0])
            row[f"{task.name}.before"] = float(task.readable(before[task.name][index, :1])) if before else None
            row[f"{task.name}.after"] = float(task.readable(after[task.name][index, :1]))
        rows.append(row)
    return rows


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
    metrics, examples = evaluate(experiment, problem, params, arrays)
    history = runs.read_rows(folder / "history.parquet")
    metrics["steps"] = len(history)
    metrics["train_seconds"] = sum(row["seconds"] for row in history)
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
