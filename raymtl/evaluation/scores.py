"""Scores of held-out examples as sums that add up over examples, episodes and workers."""

import math
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from raymtl.config import Experiment
from raymtl.data import Arrays
from raymtl.data.episodes import on_device
from raymtl.evaluation.held_out import (
    EXAMPLES_AT_ONCE,
    NUMBERS_AT_ONCE,
    Scored,
    held_out_split,
    scored,
)
from raymtl.evaluation.intervals import Estimator, Partition, Range
from raymtl.step.algorithm import Algorithm
from raymtl.step.execution import ExecutionConfig
from raymtl.step.workers import Workers
from raymtl.tasks import (
    grouped_metric_sums,
    grouped_sums,
    label_counts,
    label_mask,
    loss_sums,
    metric_names,
    metric_parts,
    metric_values,
    num_sums,
)
from raymtl.types import Metric, Params, Task, UserError

RANGES: Mapping[tuple[bool, bool], Range] = {
    (True, True): "unit",
    (True, False): "at_most_one",
    (False, True): "positive",
    (False, False): "positive",
}
"""(higher is better, on a ratio scale) -> the values that a metric can have."""


ALL = "all"
"""The partition of a single group, in which every example is."""


class Tally:
    """Sums over scored examples, from which scores and their intervals are computed. Those of
    several workers add up.
    """

    def __init__(
        self, tasks: Sequence[Task], num_groups: Mapping[str, int], device: torch.device | str
    ) -> None:
        self.tasks = tasks
        zeros = partial(torch.zeros, dtype=torch.float64, device=device)
        self.sums, self.losses, self.counts = (
            zeros(num_sums(tasks)),
            zeros(len(tasks)),
            zeros(len(tasks)),
        )
        self.grouped = {name: zeros(number, len(self.sums)) for name, number in num_groups.items()}
        self.group_counts = {name: zeros(number, len(tasks)) for name, number in num_groups.items()}
        self.decisions: dict[str, set[int]] = {}

    def add(self, one: Scored) -> None:
        """Adds scored examples to the sums."""
        tasks, batch = self.tasks, one.batch
        self.losses += loss_sums(tasks, one.predictions, batch).double()
        self.counts += label_counts(tasks, batch).double()
        groups: dict[str, Mapping[str, Tensor]] = {}
        for index, task in enumerate(tasks):
            if task.name not in batch.targets:
                continue
            self._decide(task, one)
            known = label_mask(batch, task).double()[:, None]
            own = one.groups[task.name]
            for name, numbers in own.items():
                self.group_counts[name][:, index] += grouped_sums(
                    known, numbers, len(self.grouped[name])
                )[:, 0]
            groups[task.name] = {ALL: torch.zeros_like(known, dtype=torch.int64), **own}
        sizes = {ALL: 1, **{name: len(sums) for name, sums in self.grouped.items()}}
        found = grouped_metric_sums(tasks, one.predictions, batch, groups, sizes)
        self.sums += found[ALL][0]
        for name, sums in self.grouped.items():
            sums += found[name]

    def _decide(self, task: Task, one: Scored) -> None:
        decided = task.decode(one.predictions[task.name])
        if not decided.is_floating_point():
            known = decided[label_mask(one.batch, task)]
            self.decisions.setdefault(task.name, set()).update(known.unique().tolist())

    def total(self, workers: Workers) -> tuple[dict[str, float], float]:
        """The scores by `metric_names` (nan if undefined) and the sum of the mean losses."""
        sums, losses, counts = workers.sum(torch.cat([self.sums, self.losses, self.counts])).split(
            [len(self.sums), len(self.tasks), len(self.tasks)]
        )
        values = metric_values(self.tasks, sums, counts)
        return {name: float(value) for name, value in values.items()}, float(
            (losses / counts).nansum()
        )

    def estimators(self, whole: frozenset[str]) -> dict[str, Estimator]:
        """The scores by `metric_names`, each with its values without each group."""
        parts = metric_parts(self.tasks, self.sums)
        grouped = {name: metric_parts(self.tasks, sums) for name, sums in self.grouped.items()}
        found = {}
        for index, task in enumerate(self.tasks):
            for metric_name, metric in task.metrics.items():
                key, count = f"{task.name}.{metric_name}", self.counts[index]
                partitions = {
                    name: Partition(
                        _left_out(
                            metric, parts[key], own[key], count, self.group_counts[name][:, index]
                        ),
                        (self.group_counts[name][:, index] / count.clamp(min=1)).cpu().numpy(),
                    )
                    for name, own in grouped.items()
                }
                found[key] = Estimator(float(metric.compute(parts[key], count)), partitions, whole)
        return found


def _left_out(
    metric: Metric, total: Tensor, groups: Tensor, count: Tensor, counts: Tensor
) -> np.ndarray:
    """The score without each group, [G]."""
    at_once = max(1, NUMBERS_AT_ONCE // len(total))
    values = [
        metric.compute(total - own, count - number)
        for own, number in zip(groups.split(at_once), counts.split(at_once), strict=True)
    ]
    left: np.ndarray = torch.cat(values).cpu().numpy()
    return left


def primary_metrics(tasks: Sequence[Task]) -> list[str]:
    """The main metric of each task; their mean is the score of a model."""
    return [f"{task.name}.{next(iter(task.metrics))}" for task in tasks]


def signs(tasks: Sequence[Task]) -> list[int]:
    """For each task, 1 if a higher value of its main metric is better, and -1 for an error."""
    return [1 if next(iter(task.metrics.values())).higher_is_better else -1 for task in tasks]


def mean_score(tasks: Sequence[Task], scores: Mapping[str, float]) -> float:
    """The mean of the main metrics over the tasks that have one; nan if none has."""
    values = [
        sign * scores[name] for sign, name in zip(signs(tasks), primary_metrics(tasks), strict=True)
    ]
    known = [value for value in values if not math.isnan(value)]
    if known:
        return sum(known) / len(known)
    return math.nan


def validation_scores(
    experiment: Experiment,
    algorithm: Algorithm,
    params: Params,
    arrays: Arrays,
    execution: ExecutionConfig,
    workers: Workers,
) -> dict[str, float | None]:
    """The metrics `val.*` after adaptation, equal on all workers. Each worker scores its shard, and
    the sums are added.

    The score is None for a task without labels, and if it is undefined. Such a score is left out of
    the means.
    """
    held = held_out_split(experiment, algorithm, arrays, "val", experiment.evaluate.val_episodes)
    tally = Tally(algorithm.tasks, {}, next(iter(params.values())).device)
    for one in scored(held, algorithm, params, execution, workers):
        tally.add(one._replace(groups={name: {} for name in one.groups}))
    scores, loss = tally.total(workers)
    named = {"val.score": mean_score(algorithm.tasks, scores), "val.loss": loss}
    named |= {f"val.{name}": value for name, value in scores.items()}
    named |= {f"val.{name}": value for name, value in _means(algorithm.tasks, scores).items()}
    return {name: None if math.isnan(value) else value for name, value in named.items()}


def _means(tasks: Sequence[Task], scores: Mapping[str, float]) -> dict[str, float]:
    """The mean of each metric over the tasks that have it, where there are several."""
    found = {}
    for metric, names in shared_metrics(tasks).items():
        known = [scores[name] for name in names if not math.isnan(scores[name])]
        if known:
            found[metric] = sum(known) / len(known)
        else:
            found[metric] = math.nan
    return found


def shared_metrics(tasks: Sequence[Task]) -> dict[str, list[str]]:
    """Metric -> its names in the tasks that have it."""
    found: dict[str, list[str]] = {}
    for name in metric_names(tasks):
        found.setdefault(name.rpartition(".")[2], []).append(name)
    return found


def range_of(metric: Metric) -> Range:
    """The range of values that a metric can have."""
    return RANGES[metric.higher_is_better, metric.ratio_scale]


def refuse_unscored(experiment: Experiment, arrays: Arrays) -> None:
    """Raises UserError if no task can have a score on validation, or if the task of `tune.metric`
    cannot.

    A task has no score if no row has a label, or if its score is undefined because all labels are
    equal.
    """
    tasks = experiment.data.make_tasks()
    sections = experiment.data.every_example(arrays, "val")
    if not sections or any(task.is_dense for task in tasks):
        return
    tally = Tally(tasks, {}, "cpu")
    for section in sections:
        for start in range(0, len(section.rows), EXAMPLES_AT_ONCE):
            batch = on_device(section.batch(section.rows[start : start + EXAMPLES_AT_ONCE]), "cpu")
            here = [task for task in tasks if task.name in batch.targets]
            zeros = {
                task.name: torch.zeros(len(batch.targets[task.name]), task.out_features)
                for task in here
            }
            tally.add(Scored(None, zeros, batch, {name: {} for name in batch.targets}))
    scores, _ = tally.total(Workers())
    undefined = [name for name in primary_metrics(tasks) if math.isnan(scores[name])]
    if len(undefined) == len(tasks):
        raise UserError(
            "data.split: expected rows for validation with labels that differ, so that a task has "
            f"a score, got none for {', '.join(undefined)}. Give more rows to validation by "
            "data.split, or choose other scores by data.tasks.NAME.metric."
        )
    for objective in experiment.tune.metrics if experiment.search else ():
        name = objective.removeprefix("val.")
        if name in scores and math.isnan(scores[name]):
            raise UserError(
                "tune.metric: expected a score that the rows for validation define, got "
                f"{objective}, for which they have no labels that differ. Choose another one, or "
                "give more rows to validation by data.split."
            )
