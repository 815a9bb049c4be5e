"""Tasks that are computed together: those of one loss function, with labels of one shape."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from raymtl.types import Batch, Task

FEWEST = 8
"""Fewer tasks than these are computed one by one, which is as fast."""

MOST = 64
"""The most tasks that are computed together.

The gradient of one task passes through the computation of its complete group.
"""

Group = tuple[int, ...]
"""Indices of tasks, in ascending order."""


@dataclass(frozen=True)
class SharedLoss:
    """A loss that many tasks have in common, but for numbers of their own.

    `function(prediction, target, *numbers)` returns one value per example, [N], and is safe under
    vmap. It takes each of `numbers` as a float64 tensor.
    """

    function: Callable[..., Tensor]
    numbers: tuple[tuple[float, ...], ...] = ()

    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor:
        device = prediction.device
        numbers = [torch.tensor(own, dtype=torch.float64, device=device) for own in self.numbers]
        return self.function(prediction, target, *numbers)


def grouped(keys: Iterable[Hashable | None]) -> tuple[Group, ...]:
    """The indices of equal keys together, in groups of FEWEST to MOST; all others alone.

    An index whose key is None is alone.
    """
    by_key: dict[Hashable, list[int]] = {}
    alone: list[Group] = []
    for index, key in enumerate(keys):
        if key is None:
            alone.append((index,))
        else:
            by_key.setdefault(key, []).append(index)
    together: list[Group] = []
    for indices in by_key.values():
        if len(indices) < FEWEST:
            alone += [(index,) for index in indices]
        else:
            starts = range(0, len(indices), MOST)
            together += [tuple(indices[start : start + MOST]) for start in starts]
    return (*together, *sorted(alone))


def task_groups(tasks: Sequence[Task], batches: Sequence[Batch]) -> tuple[Group, ...]:
    """The tasks whose losses are computed together in each of the batches."""
    return grouped(_key(task, batches) for task in tasks)


def _key(task: Task, batches: Sequence[Batch]) -> Hashable | None:
    """Equal for tasks that are alike in all of the batches; None for one that is like no other."""
    if not isinstance(task.loss, SharedLoss):
        return None
    labels: list[Hashable] = []
    for batch in batches:
        if task.name in batch.targets:
            target = batch.targets[task.name]
            labels.append((target.shape, target.dtype, task.name in batch.masks))
        else:
            labels.append(None)
    sizes = tuple(len(own) for own in task.loss.numbers)
    return task.loss.function, sizes, task.out_features, task.label_mask, *labels


def in_task_order(blocks: Sequence[Tensor], groups: Sequence[Group]) -> Tensor:
    """One tensor [K] of those of the groups, [C] each."""
    order = list(chain.from_iterable(groups))
    joined = torch.cat(list(blocks))
    if order == sorted(order):
        return joined
    return joined[torch.tensor(order, device=joined.device).argsort()]
