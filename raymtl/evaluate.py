"""Adapt, then score: on validation episodes while training, on test episodes in the end. Starts no Ray."""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from raymtl import config, runs
from raymtl.collective import Workers
from raymtl.config import Experiment
from raymtl.data import Arrays, Source, Split
from raymtl.data.episodes import build_episodes, on_device
from raymtl.step import HowToRun, Problem, over_episodes
from raymtl.tasks import label_counts, loss_sums, metric_parts, metric_sums, metric_values
from raymtl.types import Episode, MetaBatch, Metric, Params, Task, UserError

EPISODES_AT_ONCE = 20
EXAMPLES = 12
RELATED = 120
"""Tasks that are compared with each other at most; the comparisons are their square."""
RESAMPLES = 500
"""Of the episodes, for the interval of a score that is no mean."""
RESAMPLES_AT_ONCE = 100  # of which the sums are in memory
SHOWN_NUMBERS = 16384
"""Of an output with values for pixels in examples.parquet; of larger ones every second pixel is kept, or fewer."""


def validation_scores(
    experiment: Experiment, problem: Problem, params: Params, arrays: Arrays, how: HowToRun, workers: Workers
) -> dict[str, float]:
    """`val.*` after adaptation, equal on all workers: each scores its share, sums and counts are added up."""
    tasks = problem.tasks
    device = next(iter(params.values())).device
    share = workers.share(experiment.evaluate.val_episodes)
    sizes = _sizes(tasks)
    sums = torch.zeros(sum(sizes), dtype=torch.float64, device=device)
    for episodes, _ in _episodes(experiment, arrays, "val", share, device):
        sums += over_episodes(partial(_sums, problem, params, steps=None), episodes, how).sum(0)
    metrics, losses, counts = workers.sum(sums).split(sizes)
    scores = {name: float(value) for name, value in metric_values(tasks, metrics, counts).items()}
    return {
        "val.score": sum(scores[name] for name in primary_metrics(problem)) / len(tasks),
        "val.loss": float((losses / counts).sum()),
        **{f"val.{name}": value for name, value in scores.items()},
    }


def primary_metrics(problem: Problem) -> list[str]:
    """The first metric of each task, those that a score is the mean of."""
    return [f"{task.name}.{next(iter(task.metrics))}" for task in problem.tasks]


def _sums(problem: Problem, params: Params, episode: Episode, *, steps: int | None) -> Tensor:
    """Metric sums, loss sums and label counts on the query set after `steps` inner steps, [S + 2 K], float64."""
    unadapted = steps == 0 and problem.learner.predicts_unadapted
    support = episode.support
    adapted = problem.normalised(params, support) if unadapted else problem.adapt(params, support, steps)
    predictions = problem.predict(adapted, episode.query.inputs)
    tasks, query = problem.tasks, episode.query
    parts = (metric_sums(tasks, predictions, query), loss_sums(tasks, predictions, query), label_counts(tasks, query))
    return torch.cat([part.double() for part in parts])


def _sizes(tasks: Sequence[Task]) -> list[int]:
    """Of the three parts of `_sums`."""
    return [sum(metric.size for task in tasks for metric in task.metrics.values()), len(tasks), len(tasks)]


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
    # [steps, episodes, S + 2 K]
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
        **_intervals(problem, table.cpu(), steps),
    }
    return result, _examples(experiment, problem, params, arrays, split)


def _intervals(problem: Problem, table: Tensor, steps: Sequence[int]) -> dict[str, Any]:
    """Scores with 95 % intervals, before and after adaptation and along the inner steps.

    A metric that is a mean has the mean over episodes of its means; any other that of all their examples together.
    """
    tasks = problem.tasks
    sums, _, counts = table.split(_sizes(tasks), -1)
    parts = metric_parts(tasks, sums)
    after = steps.index(problem.learner.num_steps)
    before = 0 if problem.learner.predicts_unadapted else None
    scores: dict[str, Any] = {}
    curve: dict[str, Any] = {"steps": list(steps)}
    for index, task in enumerate(tasks):
        scores[task.name] = {}
        for name, metric in task.metrics.items():
            found = _found(metric, parts[f"{task.name}.{name}"], counts[..., index])
            scores[task.name][name] = {
                "higher_is_better": metric.higher_is_better,
                "ratio_scale": metric.ratio_scale,
                **_around(found, before, after),
            }
            along = [_estimate(at) for at in found]
            curve[f"{task.name}.{name}"] = {key: [point[key] for point in along] for key in ("mean", "ci95")}
    return {"tasks": scores, "score": _around(_found_scores(problem, parts, counts), before, after), "curve": curve}


class _Found(NamedTuple):
    """A score at one number of inner steps: of each episode, [E], or of all and of their resamples, [1 + R]."""

    values: Tensor
    per_episode: bool

    def less(self, other: "_Found") -> "_Found":
        """What it is above the other, in the same episodes."""
        return _Found(self.values - other.values, self.per_episode)


def _found(metric: Metric, sums: Tensor, counts: Tensor) -> list[_Found]:
    """At each number of steps, of sums [steps, E, size] and counts [steps, E]."""
    per_episode = metric.is_mean
    values = metric.value(sums, counts) if per_episode else _resampled(metric, sums, counts)
    return [_Found(at, per_episode) for at in values]


def _found_scores(problem: Problem, parts: Mapping[str, Tensor], counts: Tensor) -> list[_Found]:
    """The mean over tasks of their first metrics."""
    first = [next(iter(task.metrics.values())) for task in problem.tasks]
    per_episode = all(metric.is_mean for metric in first)
    values = []
    for metric, name, count in zip(first, primary_metrics(problem), counts.unbind(-1), strict=True):
        if not metric.is_mean:
            values.append(_resampled(metric, parts[name], count))
        elif per_episode:
            values.append(metric.value(parts[name], count))
        else:
            own = metric.value(parts[name], count)
            values.append(_resampled(metric, own.nan_to_num(0.0)[..., None], (~own.isnan()).double()))
    return [_Found(at, per_episode) for at in torch.stack(values).nanmean(0)]


def _resampled(metric: Metric, sums: Tensor, counts: Tensor) -> Tensor:
    """The score of all episodes, and of as many drawn with replacement, again and again: [steps, 1 + R].

    The same draws for every metric and number of steps.
    """
    number = counts.shape[-1]
    drawn = torch.randint(number, (RESAMPLES, number), generator=torch.Generator().manual_seed(0))
    times = torch.zeros(RESAMPLES, number, dtype=sums.dtype).scatter_add(1, drawn, torch.ones_like(drawn).to(sums))
    times = torch.cat([torch.ones_like(times[:1]), times])
    return torch.stack(
        [
            torch.cat([metric.value(some @ own, some @ count) for some in times.split(RESAMPLES_AT_ONCE)])
            for own, count in zip(sums, counts, strict=True)
        ]
    )


def _around(found: Sequence[_Found], before: int | None, after: int) -> dict[str, Any]:
    if before is None:
        return {"before": None, "after": _estimate(found[after]), "gain": None}
    return {
        "before": _estimate(found[before]),
        "after": _estimate(found[after]),
        "gain": _estimate(found[after].less(found[before])),
    }


def _estimate(found: _Found) -> dict[str, float]:
    """The score and the half-width of its 95 % interval."""
    if found.per_episode:
        return mean_and_interval(found.values)
    low, high = found.values[1:].nanquantile(found.values.new_tensor([0.025, 0.975]))
    return {"mean": float(found.values[0]), "ci95": float(high - low) / 2}


def scores_of(task: Task, prediction: Tensor, target: Tensor) -> dict[str, dict[str, float]]:
    """Each metric and the loss of these examples, all labelled, with the half-widths of their 95 % intervals."""
    one = torch.ones(1, len(prediction), dtype=torch.float64)
    found = {}
    for name, metric in task.metrics.items():
        values = metric.per_example(prediction, target).double().cpu().reshape(1, -1, metric.size)
        found[name] = _estimate(_found(metric, values, one)[0])
    return {**found, "loss": mean_and_interval(task.loss(prediction, target).double())}


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
