"""Thresholds of tasks of yes or no: the logit above which the answer is yes.

The best threshold of a score is a cut between two neighbouring logits of the validation split. All
cuts are tried, from the running counts of true and false yeses (as scikit-learn's
`precision_recall_curve` and `roc_curve` do).
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from raymtl.types import Counts, Task, UserError

ThresholdMetric = Literal["f1", "balanced_accuracy", "accuracy"]
"""The scores of decisions, which depend on a threshold."""
DECIDED: tuple[ThresholdMetric, ...] = get_args(ThresholdMetric)


def with_threshold(
    task: Task, threshold: ThresholdMetric | float | None, metric: str | None
) -> Task:
    """The same task with what its configuration says of thresholds.

    A number is a probability, which decides from now on. A score is what they are chosen by when
    the training has ended; without one, `metric` is, where it is a score of decisions.

    Raises UserError for a task without thresholds.
    """
    if not task.kind.has_thresholds:
        if threshold is None:
            return task
        raise UserError(
            f"data.tasks.{task.name}.threshold: expected none of kind {task.kind}, got "
            f"{threshold}. Leave it away, or take kind: binary or multilabel."
        )
    if isinstance(threshold, float):
        logit = math.log(threshold) - math.log1p(-threshold)
        return at_thresholds(task, (logit,) * task.out_features)
    by = threshold or metric
    if by in DECIDED:
        return task._replace(threshold_metric=by)
    return task


def at_thresholds(task: Task, logits: Sequence[float | None]) -> Task:
    """The same task, whose decisions begin above these logits, one for each label, instead of 0.

    None stands for 0. The task must not have thresholds yet.
    """
    shift = torch.tensor([logit or 0.0 for logit in logits], dtype=torch.float64)

    def shifted(prediction: Tensor) -> Tensor:
        # In double precision, so that neighbouring logits stay on either side of their threshold.
        return prediction.double() - shift.to(prediction.device)

    def update_at(
        update: Callable[[Tensor, Tensor], Tensor | Counts],
    ) -> Callable[[Tensor, Tensor], Tensor | Counts]:
        return lambda prediction, target: update(shifted(prediction), target)

    metrics = dict(task.metrics)
    for name in DECIDED:
        if name in metrics:
            metrics[name] = metrics[name]._replace(update=update_at(metrics[name].update))
    return task._replace(
        metrics=metrics,
        decode=lambda prediction: task.decode(shifted(prediction)),
        thresholds=tuple(logits),
    )


def best_threshold(logits: Tensor, target: Tensor, metric: ThresholdMetric) -> float | None:
    """The logit above which yes has the best score, of logits [N] and targets [N] of 0 and 1.

    Equal logits fall on the same side. Of several cuts with the best score the one nearest to 0
    counts. None where all targets are alike, since nothing can be chosen by them.
    """
    values, inverse = logits.double().unique(return_inverse=True)
    is_yes = (target > 0.5).double()
    zeros = torch.zeros(len(values), dtype=torch.float64, device=logits.device)
    yes = zeros.index_add(0, inverse, is_yes)
    no = zeros.index_add(0, inverse, 1 - is_yes)
    if not yes.any() or not no.any():
        return None
    cuts = torch.cat([values[:1] - 1, (values[1:] + values[:-1]) / 2, values[-1:] + 1])
    # At cut i the i lowest of the different logits are a no.
    missed = torch.cat([yes.new_zeros(1), yes.cumsum(0)])
    true_no = torch.cat([no.new_zeros(1), no.cumsum(0)])
    scores = _score(yes.sum() - missed, missed, no.sum() - true_no, true_no, metric)
    best = cuts[scores >= scores.max() - 1e-12]
    return float(best[best.abs().argmin()])


def _score(
    true_yes: Tensor, missed: Tensor, false_yes: Tensor, true_no: Tensor, metric: ThresholdMetric
) -> Tensor:
    """The score at each cut, of counts [N + 1]."""
    if metric == "f1":
        return 2 * true_yes / (2 * true_yes + false_yes + missed)
    if metric == "accuracy":
        return (true_yes + true_no) / (true_yes + missed + false_yes + true_no)
    return (true_yes / (true_yes + missed) + true_no / (true_no + false_yes)) / 2
