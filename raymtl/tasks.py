"""The kinds of task: head, loss per example, metrics; and their losses as sums and counts."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raymtl.types import Batch, Metric, Task


def classification(name: str, num_classes: int) -> Task:
    """Cross-entropy over `num_classes`; targets are integers [N]; metric: accuracy in [0, 1]."""
    return Task(
        name=name,
        kind="classification",
        out_features=num_classes,
        head=lambda in_features: nn.Linear(in_features, num_classes),
        loss=lambda logits, target: F.cross_entropy(logits, target, reduction="none"),
        metrics={"accuracy": Metric(lambda logits, target: (logits.argmax(-1) == target).float(), True)},
        readable=lambda logits: logits.argmax(-1),
        # Not F.one_hot, which looks at the values and so cannot run under vmap.
        encoded=lambda target: (target[:, None] == torch.arange(num_classes, device=target.device)).float(),
    )


def regression(name: str, mean: float, std: float) -> Task:
    """Squared error of the standardised target (no factor 1/2); `mean` and `std` are those of the training targets.

    Metrics: `r2` = 1 - squared error / std^2, that is R^2 against the training variance, so that it is a mean over
    examples; `mae` in the target's own unit.
    """

    def error(prediction: Tensor, target: Tensor) -> Tensor:
        return prediction.squeeze(-1) - (target - mean) / std

    return Task(
        name=name,
        kind="regression",
        out_features=1,
        head=lambda in_features: nn.Linear(in_features, 1),
        loss=lambda prediction, target: error(prediction, target).square(),
        metrics={
            "r2": Metric(lambda prediction, target: 1 - error(prediction, target).square(), True, ratio_scale=False),
            "mae": Metric(lambda prediction, target: error(prediction, target).abs() * std, False),
        },
        readable=lambda prediction: prediction.squeeze(-1) * std + mean,
        encoded=lambda target: (target[:, None] - mean) / std,
    )


def label_counts(tasks: Sequence[Task], batch: Batch) -> Tensor:
    """How many examples of the batch (of one episode) carry a label of each task, [K]; 0 of a task that it lacks."""
    device = next(iter(batch.targets.values())).device
    counts = []
    for task in tasks:
        if task.name in batch.masks:
            counts.append(batch.masks[task.name].sum())
        else:
            number = len(batch.targets[task.name]) if task.name in batch.targets else 0
            counts.append(torch.tensor(number, device=device))
    return torch.stack(counts)


def task_loss_sums(tasks: Sequence[Task], predictions: Mapping[str, Tensor], batch: Batch) -> tuple[Tensor, ...]:
    """Sum over the labelled examples of each task's loss: K scalars whose graphs are apart from each other.

    0 for a task that the batch lacks.
    """
    none = next(iter(predictions.values())).new_zeros(())
    return tuple(
        masked_sum(batch, t.name, t.loss(predictions[t.name], _labels(batch, t.name)))
        if t.name in batch.targets
        else none
        for t in tasks
    )


def loss_sums(tasks: Sequence[Task], predictions: Mapping[str, Tensor], batch: Batch) -> Tensor:
    """The same as one tensor, [K]."""
    return torch.stack(task_loss_sums(tasks, predictions, batch))


def masked_sum(batch: Batch, task: str, values: Tensor) -> Tensor:
    """Sum of `values` [N] over the examples whose label of `task` is there."""
    if task in batch.masks:
        values = torch.where(batch.masks[task], values, 0.0)
    return values.sum()


def _labels(batch: Batch, task: str) -> Tensor:
    """The targets, 0 in place of those that are missing, which may hold anything: nan, or a class that is none."""
    target = batch.targets[task]
    if task not in batch.masks:
        return target
    mask = batch.masks[task]
    return torch.where(mask.reshape(mask.shape + (1,) * (target.ndim - 1)), target, 0)


def metric_sums(tasks: Sequence[Task], predictions: Mapping[str, Tensor], batch: Batch) -> Tensor:
    """Sum over the labelled examples of every metric of every task, [number of metrics], in `metric_names` order."""
    none = next(iter(predictions.values())).new_zeros(())
    return torch.stack(
        [
            masked_sum(batch, task.name, metric.per_example(predictions[task.name], _labels(batch, task.name)))
            if task.name in batch.targets
            else none
            for task in tasks
            for metric in task.metrics.values()
        ]
    )


def metric_names(tasks: Sequence[Task]) -> list[str]:
    """Dotted names `task.metric`, in the order of `metric_sums`."""
    return [f"{task.name}.{metric}" for task in tasks for metric in task.metrics]
