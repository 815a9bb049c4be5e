"""Sums over workers. With one worker every operation is the identity and torch.distributed is not touched."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch import distributed as dist


class Workers(NamedTuple):
    """This process among those that share a meta-batch."""

    rank: int = 0
    size: int = 1

    def sum(self, local: Tensor) -> Tensor:
        """The sum over workers, on all of them."""
        if self.size > 1:
            local = local.contiguous().clone()
            dist.all_reduce(local)
        return local

    def sum_to_shard(self, rows: Tensor) -> Tensor:
        """[K, P] on every worker -> the sum over workers of this worker's columns, [K, ceil(P / size)], zero-padded."""
        if self.size == 1:
            return rows
        width = -(-rows.shape[1] // self.size)
        padded = rows.new_zeros(self.size, len(rows), width)
        for part, columns in zip(padded, rows.split(width, dim=1), strict=False):
            part[:, : columns.shape[1]] = columns
        shard = rows.new_empty(len(rows), width)
        dist.reduce_scatter_tensor(shard, padded.flatten(0, 1))
        return shard

    def gather(self, shard: Tensor, length: int) -> Tensor:
        """The shards [..., ceil(P / size)] of all workers joined, without the padding: [..., P]."""
        if self.size == 1:
            return shard
        whole = shard.new_empty(self.size, *shard.shape)
        dist.all_gather_into_tensor(whole.flatten(0, -2) if shard.ndim > 1 else whole.flatten(), shard.contiguous())
        return whole.movedim(0, -2).flatten(-2)[..., :length]

    def share(self, count: int) -> range:
        """Which of `count` items are this worker's: contiguous, their numbers differ by one at most."""
        return range(count * self.rank // self.size, count * (self.rank + 1) // self.size)


class Losses(NamedTuple):
    """This worker's part of the losses of one batch, with their graph: parts add up over workers and batches."""

    tasks: tuple[Tensor, ...]
    """One scalar a task, apart from each other so that a task's gradient passes through its own head alone."""
    rest: Tensor
    """What belongs to no task, a scalar."""


class TaskGradients:
    """The gradients of the task losses, one row each, summed over workers before anything is made of them.

    Each of `passes` computes the losses of some of this worker's episodes; with several, one after the other, no
    more than one graph is in memory. `tasks` says which tasks have labels at all. The rows are computed when first
    asked for, with one backward pass a task.
    """

    def __init__(
        self,
        passes: Sequence[Callable[[], Losses]],
        tasks: Sequence[int],
        shared: Sequence[Tensor],
        private: Sequence[Tensor],
        workers: Workers,
    ) -> None:
        self.passes, self.tasks, self.workers = passes, tasks, workers
        self.leaves, self.num_shared = [*shared, *private], len(shared)
        self.width = sum(leaf.numel() for leaf in shared)  # P
        self._rows: Tensor | None = None  # [K, P / size] or, once changed, [K, P]
        self._rest: Tensor | None = None
        self._whole = workers.size == 1

    @property
    def computed(self) -> bool:
        """Whether a method has asked for the rows."""
        return self._rows is not None

    def gramian(self) -> Tensor:
        """Inner products [K, K] of the tasks' gradients on the shared parameters.

        Every worker holds the summed columns of its own shard and multiplies those; the products add up. The mean
        of the workers' Gramians would not be the Gramian of their mean.
        """
        rows = self._computed_rows()
        products = rows @ rows.T
        return products if self._whole else self.workers.sum(products)

    def change(self, rows: Callable[[Tensor], Tensor]) -> None:
        """Puts `rows(the rows [K, P])` in their place; the function sees the whole rows on every worker."""
        whole = self._computed_rows()
        if not self._whole:
            whole = self.workers.gather(whole, self.width)
        self._rows, self._whole = rows(whole), True

    def combine(self, weights: Tensor) -> Tensor:
        """The flat gradient: the weighted sum on the shared parameters, the plain sum on the private ones."""
        rows = self._computed_rows()
        joint = weights.to(rows) @ rows
        flat = self.workers.sum(self._rest) if self._rest is not None else torch.zeros_like(joint)
        flat[: self.width] += joint if self._whole else self.workers.gather(joint, self.width)
        return flat

    def weighted(self, weights: Tensor) -> Tensor:
        """The flat gradient of the weighted sum of the losses, by one backward pass."""
        flat = self._zeros()
        for losses in (compute() for compute in self.passes):
            terms = [losses.tasks[task] * weight for task, weight in zip(self.tasks, weights.unbind(), strict=True)]
            total = sum(terms, start=losses.rest)
            if total.requires_grad:
                _add_into(flat, torch.autograd.grad(total, self.leaves, allow_unused=True), self.leaves)
        return self.workers.sum(flat)

    def _computed_rows(self) -> Tensor:
        if self._rows is None:
            rest = self._zeros()
            rows = rest.new_zeros(len(self.tasks), self.width)
            for losses in (compute() for compute in self.passes):
                for row, task in zip(rows, self.tasks, strict=True):
                    grads = torch.autograd.grad(losses.tasks[task], self.leaves, retain_graph=True, allow_unused=True)
                    _add_into(row, grads[: self.num_shared], self.leaves)
                    _add_into(rest[self.width :], grads[self.num_shared :], self.leaves[self.num_shared :])
                if losses.rest.requires_grad:
                    _add_into(rest, torch.autograd.grad(losses.rest, self.leaves, allow_unused=True), self.leaves)
            self._rest, self._rows = rest, self.workers.sum_to_shard(rows)
        return self._rows

    def _zeros(self) -> Tensor:
        return self.leaves[0].new_zeros(sum(leaf.numel() for leaf in self.leaves))


def _add_into(flat: Tensor, grads: Sequence[Tensor | None], leaves: Sequence[Tensor]) -> None:
    """Adds gradients one after the other to `flat` [P]; where one is None nothing is added."""
    start = 0
    for grad, leaf in zip(grads, leaves, strict=False):
        if grad is not None:
            flat[start : start + leaf.numel()] += grad.reshape(-1)
        start += leaf.numel()
