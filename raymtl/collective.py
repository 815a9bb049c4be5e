"""Sums over workers. With one worker every operation is the identity and torch.distributed is not touched."""

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
        """The shards [ceil(P / size)] of all workers joined, without the padding: [P]."""
        if self.size == 1:
            return shard
        whole = shard.new_empty(self.size * len(shard))
        dist.all_gather_into_tensor(whole, shard.contiguous())
        return whole[:length]

    def share(self, count: int) -> range:
        """Which of `count` items are this worker's: contiguous, their numbers differ by one at most."""
        return range(count * self.rank // self.size, count * (self.rank + 1) // self.size)


class TaskGradients:
    """The gradients of K task losses, one row each, summed over workers before anything is made of them.

    `losses` [K] are this worker's parts of the task losses: they add up over workers to the losses. The rows are
    computed when `gramian` is first called, with one backward pass a task.
    """

    def __init__(self, losses: Tensor, shared: list[Tensor], private: list[Tensor], workers: Workers) -> None:
        self.losses, self.shared, self.private, self.workers = losses, shared, private, workers
        self._rows: Tensor | None = None
        self._private_sum: Tensor | None = None

    @property
    def computed(self) -> bool:
        return self._rows is not None

    def gramian(self) -> Tensor:
        """Inner products [K, K] of the tasks' gradients on the shared parameters.

        Every worker holds the summed columns of its own shard and multiplies those; the products add up. The mean
        of the workers' Gramians would not be the Gramian of their mean.
        """
        if self._rows is None:
            leaves = [*self.shared, *self.private]
            num_shared = sum(leaf.numel() for leaf in self.shared)
            rows = self.losses.new_zeros(len(self.losses), sum(leaf.numel() for leaf in leaves))
            for row, loss in zip(rows, self.losses, strict=True):
                flatten_into(row, torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True), leaves)
            self._private_sum = rows[:, num_shared:].sum(0)
            self._rows = self.workers.sum_to_shard(rows[:, :num_shared])
        return self.workers.sum(self._rows @ self._rows.T)

    def combine(self, weights: Tensor) -> Tensor:
        """The flat gradient [P]: the weighted sum on the shared parameters, the plain sum on the private ones."""
        if self._rows is None or self._private_sum is None:
            self.gramian()
        assert self._rows is not None and self._private_sum is not None
        num_shared = sum(leaf.numel() for leaf in self.shared)
        joint = self.workers.gather(weights.to(self._rows) @ self._rows, num_shared)
        return torch.cat([joint, self.workers.sum(self._private_sum)])

    def weighted(self, weights: Tensor) -> Tensor:
        """The flat gradient [P] of the weighted sum of the losses, by one backward pass."""
        leaves = [*self.shared, *self.private]
        flat = self.losses.new_zeros(sum(leaf.numel() for leaf in leaves))
        grads = torch.autograd.grad(self.losses, leaves, grad_outputs=weights.to(self.losses), allow_unused=True)
        flatten_into(flat, grads, leaves)
        return self.workers.sum(flat)


def flatten_into(flat: Tensor, grads: tuple[Tensor | None, ...], leaves: list[Tensor]) -> None:
    """Writes gradients one after the other into `flat` [P]; what is None stays as it was."""
    start = 0
    for grad, leaf in zip(grads, leaves, strict=True):
        if grad is not None:
            flat[start : start + leaf.numel()] = grad.reshape(-1)
        start += leaf.numel()
