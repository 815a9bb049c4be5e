"""Losses and metrics of tasks as sums and counts, which add up over masks, episodes and workers."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from raymtl.types import Batch, Task


def label_counts(tasks: Sequence[Task], batch: Batch) -> Tensor:
    """How many examples of the batch (of one episode) carry a label of each task, [K]; 0 of a task that it lacks."""
    device = next(iter(batch.targets.values())).device
    counts = []
    for task in tasks:
        known = _known(batch, task) if task.name in batch.targets else None
        if known is not None:
            counts.append(known.sum())
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
        _labelled_sum(batch, t, t.loss(predictions[t.name], _labels(batch, t.name)))
        if t.name in batch.targets
        else none
        for t in tasks
    )


def loss_sums(tasks: Sequence[Task], predictions: Mapping[str, Tensor], batch: Batch) -> Tensor:
    """The same as one tensor, [K]."""
    return torch.stack(task_loss_sums(tasks, predictions, batch))


def metric_sums(tasks: Sequence[Task], predictions: Mapping[str, Tensor], batch: Batch) -> Tensor:
    """Sums over the labelled examples of what every metric of every task is made of, [sum of their sizes], float64.

    In the order of `metric_names`. In float64 because pixels of many pictures are more than float32 can count.
    """
    device = next(iter(predictions.values())).device
    sums = []
    for task in tasks:
        for metric in task.metrics.values():
            if task.name in batch.targets:
                values = metric.per_example(predictions[task.name], _labels(batch, task.name))
                sums.append(_labelled_sum(batch, task, values.double().reshape(len(values), metric.size)))
            else:
                sums.append(torch.zeros(metric.size, dtype=torch.float64, device=device))
    return torch.cat(sums)


def metric_names(tasks: Sequence[Task]) -> list[str]:
    """Dotted names `task.metric`."""
    return [f"{task.name}.{metric}" for task in tasks for metric in task.metrics]


def metric_parts(tasks: Sequence[Task], sums: Tensor) -> dict[str, Tensor]:
    """What belongs to each metric, [..., size] by `metric_names`, of sums as `metric_sums` gives them, [..., S]."""
    sizes = [metric.size for task in tasks for metric in task.metrics.values()]
    return dict(zip(metric_names(tasks), sums.split(sizes, -1), strict=True))


def metric_values(tasks: Sequence[Task], sums: Tensor, counts: Tensor) -> dict[str, Tensor]:
    """The scores, [...] by `metric_names`, of sums [..., S] and of the numbers of labelled examples, [..., K]."""
    parts = metric_parts(tasks, sums)
    return {
        f"{task.name}.{name}": metric.value(parts[f"{task.name}.{name}"], count)
        for task, count in zip(tasks, counts.unbind(-1), strict=True)
        for name, metric in task.metrics.items()
    }


def _known(batch: Batch, task: Task) -> Tensor | None:
    """Which examples have a label of the task, [N]; None where all have one."""
    mask = batch.masks.get(task.name)
    if task.labelled is None:
        return mask
    says = task.labelled(batch.targets[task.name])
    return says if mask is None else says & mask


def _labelled_sum(batch: Batch, task: Task, values: Tensor) -> Tensor:
    """Sum of `values` [N, ...] over the examples whose label of the task is there."""
    known = _known(batch, task)
    if known is not None:
        values = torch.where(known.reshape(known.shape + (1,) * (values.ndim - 1)), values, 0.0)
    return values.sum(0)


def _labels(batch: Batch, task: str) -> Tensor:
    """The targets, 0 in place of those that are masked, which may hold anything: nan, or a class that is none."""
    target = batch.targets[task]
    if task not in batch.masks:
        return target
    mask = batch.masks[task]
    return torch.where(mask.reshape(mask.shape + (1,) * (target.ndim - 1)), target, 0)
