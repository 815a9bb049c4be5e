"""Losses and metrics of tasks as sums and counts, which add up over masks, episodes and workers."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.func import vmap

from raymtl.tasks.groups import Group, SharedLoss, in_task_order, task_groups
from raymtl.types import Batch, Counts, Metric, Task


def label_counts(tasks: Sequence[Task], batch: Batch) -> Tensor:
    """How many examples of the batch (of one episode) carry a label of each task, [K]; 0 of a task
    that it lacks.
    """
    device = next(iter(batch.targets.values())).device
    sizes = [len(batch.targets.get(task.name, ())) for task in tasks]
    groups, counts, has_masks = task_groups(tasks, [batch]), [], False
    for group in groups:
        known = _known_of_group(batch, [tasks[index] for index in group])
        if known is None:
            counts.append(torch.tensor([sizes[index] for index in group], device=device))
        else:
            counts.append(known.sum(1))
            has_masks = True
    if not has_masks:
        return torch.tensor(sizes, device=device)
    return in_task_order(counts, groups)


def group_loss_sums(
    tasks: Sequence[Task],
    groups: Sequence[Group],
    predictions: Mapping[str, Tensor],
    batch: Batch,
) -> tuple[Tensor, ...]:
    """Sum over the labelled examples of each task's loss: [C] for each of the `task_groups`, whose
    graphs are apart from each other.

    0 for a task that the batch lacks.
    """
    sums = []
    for group in groups:
        sums.append(_group_loss_sum([tasks[index] for index in group], predictions, batch))
    return tuple(sums)


def _group_loss_sum(
    tasks: Sequence[Task], predictions: Mapping[str, Tensor], batch: Batch
) -> Tensor:
    """The summed loss of each task of one group, [C]."""
    first = tasks[0]
    if first.name not in batch.targets:
        return next(iter(predictions.values())).new_zeros(len(tasks))
    if len(tasks) == 1:
        losses = first.loss(predictions[first.name], _labels(batch, first.name))
        return _where_labelled(batch, first, losses).sum(0, keepdim=True)
    prediction = torch.stack([predictions[task.name] for task in tasks])
    target = torch.stack([batch.targets[task.name] for task in tasks])
    if first.name in batch.masks:
        mask = torch.stack([batch.masks[task.name] for task in tasks])
        target = torch.where(mask.reshape(mask.shape + (1,) * (target.ndim - 2)), target, 0)
    own = [task.loss for task in tasks if isinstance(task.loss, SharedLoss)]
    numbers = [
        torch.tensor(column, dtype=torch.float64, device=prediction.device)
        for column in zip(*(loss.numbers for loss in own), strict=True)
    ]
    losses = vmap(own[0].function)(prediction, target, *numbers)
    known = _known_of_group(batch, tasks)
    if known is not None:
        losses = torch.where(known, losses, 0.0)
    return losses.sum(1)


def loss_sums(tasks: Sequence[Task], predictions: Mapping[str, Tensor], batch: Batch) -> Tensor:
    """The summed loss of each task as one tensor, [K]."""
    groups = task_groups(tasks, [batch])
    return in_task_order(group_loss_sums(tasks, groups, predictions, batch), groups)


def metric_sums(tasks: Sequence[Task], predictions: Mapping[str, Tensor], batch: Batch) -> Tensor:
    """Sums over the labelled examples of what every metric of every task is made of, [sum of their
    sizes], float64.

    In the order of `metric_names`. In float64 because pixels of many pictures are more than float32
    can count.
    """
    every: dict[str, Mapping[str, Tensor]] = {
        name: {"": torch.zeros(len(prediction), 1, dtype=torch.int64, device=prediction.device)}
        for name, prediction in predictions.items()
    }
    return grouped_metric_sums(tasks, predictions, batch, every, {"": 1})[""][0]


def grouped_metric_sums(
    tasks: Sequence[Task],
    predictions: Mapping[str, Tensor],
    batch: Batch,
    groups: Mapping[str, Mapping[str, Tensor]],
    num_groups: Mapping[str, int],
) -> dict[str, Tensor]:
    """The same sums for each group of several partitions: partition -> [groups, sum of the sizes],
    float64.

    `groups` are task -> partition -> numbers of the groups that its examples are in, [N, k], -1 for
    none. A task that a partition lacks adds nothing to it.
    """
    device = next(iter(predictions.values())).device
    sums: dict[str, list[Tensor]] = {name: [] for name in num_groups}
    for task in tasks:
        for metric in task.metrics.values():
            found = {}
            if task.name in batch.targets:
                values = metric.update(predictions[task.name], _labels(batch, task.name))
                found = _sums_by_group(batch, task, metric, values, groups[task.name], num_groups)
            for name, number in num_groups.items():
                none = torch.zeros(number, metric.state_size, dtype=torch.float64, device=device)
                sums[name].append(found.get(name, none))
    return {name: torch.cat(columns, 1) for name, columns in sums.items()}


def _sums_by_group(
    batch: Batch,
    task: Task,
    metric: Metric,
    values: Tensor | Counts,
    groups: Mapping[str, Tensor],
    num_groups: Mapping[str, int],
) -> dict[str, Tensor]:
    """Partition -> the sums of what `update` gave for the labelled examples, [groups, size]."""
    if not isinstance(values, Counts):
        dense = _where_labelled(
            batch, task, values.double().reshape(len(values), metric.state_size)
        )
        return {name: grouped_sums(dense, own, num_groups[name]) for name, own in groups.items()}
    weights = _where_labelled(batch, task, values.weights.double())
    found = {}
    for name, own in groups.items():
        out = weights.new_zeros(num_groups[name] * metric.state_size)
        for column in range(own.shape[1]):
            group, here = _column(own, column)
            places = (values.places + group[:, None] * metric.state_size).flatten()
            out = out.scatter_add(0, places, (weights * here[:, None]).flatten())
        found[name] = out.reshape(num_groups[name], metric.state_size)
    return found


def grouped_sums(values: Tensor, groups: Tensor, num_groups: int) -> Tensor:
    """Sums of values [N, S] over the examples of each group, [num_groups, S]; groups are [N, k], -1
    for none.
    """
    out = values.new_zeros(num_groups, values.shape[1])
    for column in range(groups.shape[1]):
        group, here = _column(groups, column)
        out = out.index_add(0, group, values * here[:, None])
    return out


def _column(groups: Tensor, column: int) -> tuple[Tensor, Tensor]:
    """The groups [N] of one column, and which examples count in it: once a group, and not where
    there is none.
    """
    group = groups[:, column]
    repeated = (groups[:, :column] == group[:, None]).any(1)
    return group.clamp(min=0), ((group >= 0) & ~repeated).double()


def num_sums(tasks: Sequence[Task]) -> int:
    """How many sums all metrics of the tasks are made of."""
    return sum(metric.state_size for task in tasks for metric in task.metrics.values())


def metric_names(tasks: Sequence[Task]) -> list[str]:
    """Dotted names `task.metric`."""
    return [f"{task.name}.{metric}" for task in tasks for metric in task.metrics]


def metric_parts(tasks: Sequence[Task], sums: Tensor) -> dict[str, Tensor]:
    """What belongs to each metric, [..., size] by `metric_names`, of sums as `metric_sums` gives
    them, [..., S].
    """
    sizes = [metric.state_size for task in tasks for metric in task.metrics.values()]
    return dict(zip(metric_names(tasks), sums.split(sizes, -1), strict=True))


def metric_values(tasks: Sequence[Task], sums: Tensor, counts: Tensor) -> dict[str, Tensor]:
    """The scores, [...] by `metric_names`, of sums [..., S] and of the numbers of labelled
    examples, [..., K].
    """
    parts = metric_parts(tasks, sums)
    return {
        f"{task.name}.{name}": metric.compute(parts[f"{task.name}.{name}"], count)
        for task, count in zip(tasks, counts.unbind(-1), strict=True)
        for name, metric in task.metrics.items()
    }


def label_mask(batch: Batch, task: Task) -> Tensor:
    """Which examples of the batch have a label of the task, [N]."""
    known = _known(batch, task)
    target = batch.targets[task.name]
    if known is None:
        return torch.ones(len(target), dtype=torch.bool, device=target.device)
    return known


def _known(batch: Batch, task: Task) -> Tensor | None:
    """Which examples have a label of the task, [N]; None where all have one."""
    mask = batch.masks.get(task.name)
    if task.label_mask is None:
        return mask
    says = task.label_mask(batch.targets[task.name])
    if mask is None:
        return says
    return says & mask


def _known_of_group(batch: Batch, tasks: Sequence[Task]) -> Tensor | None:
    """Which examples have a label of each task of one group, [C, N]; None where all have one."""
    first = tasks[0]
    if first.name not in batch.targets:
        return None
    if len(tasks) == 1:
        known = _known(batch, first)
        return None if known is None else known[None]
    masks = None
    if first.name in batch.masks:
        masks = torch.stack([batch.masks[task.name] for task in tasks])
    if first.label_mask is None:
        return masks
    says = vmap(first.label_mask)(torch.stack([batch.targets[task.name] for task in tasks]))
    if masks is None:
        return says
    return says & masks


def _where_labelled(batch: Batch, task: Task, values: Tensor) -> Tensor:
    """The same values [N, ...], 0 for the examples whose label of the task is missing."""
    known = _known(batch, task)
    if known is None:
        return values
    return torch.where(known.reshape(known.shape + (1,) * (values.ndim - 1)), values, 0.0)


def _labels(batch: Batch, task: str) -> Tensor:
    """The targets, 0 in place of those that are masked, which may hold anything: nan, or a class
    that is none.
    """
    target = batch.targets[task]
    if task not in batch.masks:
        return target
    mask = batch.masks[task]
    return torch.where(mask.reshape(mask.shape + (1,) * (target.ndim - 1)), target, 0)
