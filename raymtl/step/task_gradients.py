"""The gradients of the tasks in one outer step, exact over workers and micro-batches."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from raymtl.step.workers import Workers


class Losses(NamedTuple):
    """This worker's share of the losses of one batch, with their graph.

    The shares of all workers and micro-batches add up to the losses.
    """

    tasks: tuple[Tensor, ...]
    """A separate scalar for each task, so that its gradient passes through one head alone."""
    rest: Tensor
    """The terms that belong to no task, a scalar."""


BLOCK = 1 << 16
"""Columns that are multiplied at once.

They stay in a CPU's cache, and a float32 sum of more columns would lose digits.
"""


class TaskGradients:
    """The gradients of the task losses, one row each, summed over workers before they are used.

    Each of `micro_batches` computes the losses of some of this worker's episodes. Several are run
    one after the other, so that only one graph is in memory. `losses` are their sums [num_tasks],
    known after `compute` or `weighted`. `tasks` lists the tasks that have
    labels. The rows are computed at the first use, with one backward pass for each task. They stay
    in the pieces that autograd makes, one for each leaf, because copying them into one matrix would
    cost more than all that is done with it.
    """

    def __init__(
        self,
        micro_batches: Sequence[Callable[[], Losses]],
        tasks: Sequence[int],
        shared: Sequence[Tensor],
        private: Sequence[Tensor],
        workers: Workers,
    ) -> None:
        self.micro_batches, self.tasks, self.workers = micro_batches, tasks, workers
        self.leaves, self.num_shared = [*shared, *private], len(shared)
        self.width = sum(leaf.numel() for leaf in shared)  # P
        # The rows side by side: one matrix, or a sequence over the leaves of K flat gradients each.
        self._rows: Tensor | list[Sequence[Tensor]] | None = (
            None  # [K, P / size] or, once changed, [K, P]
        )
        self._rest: Tensor | None = (
            None  # what is unweighted: on the shared parameters, where there is any ...
        )
        self._private: Tensor | None = None  # ... and on the private ones
        self._is_complete = workers.size == 1
        self.losses: Tensor | None = None

    def compute(self) -> None:
        """Computes the rows now, and not at their first use."""
        self._rows = self._computed_rows()

    def gramian(self) -> Tensor:
        """Inner products [K, K] of the tasks' gradients on the shared parameters.

        Every worker holds the summed columns of its own shard and multiplies those; the products
        add up. The mean of the workers' Gramians would not be the Gramian of their mean.
        """
        products = torch.stack([block @ block.T for block in self._blocks()]).sum(0)
        if self._is_complete:
            return products
        return self.workers.sum(products)

    def rows(self) -> Tensor:
        """The whole rows [K, P], the same on every worker."""
        if self._rows is None:
            self._rows = self._computed_rows()
        if isinstance(self._rows, Tensor):
            rows = self._rows
        else:
            rows = _joined(self._rows, self.width)
        if not self._is_complete:
            rows = self.workers.gather(rows, self.width)
        self._rows, self._is_complete = rows, True
        return rows

    def change(self, function: Callable[[Tensor], Tensor]) -> None:
        """Replaces the rows [K, P] by `function(rows)`, which is the same on every worker."""
        self._rows = function(self.rows())

    def combine(self, weights: Tensor) -> Tensor:
        """The flat gradient: the weighted sum on the shared parameters, the plain sum on the
        private ones.
        """
        joint = torch.cat([weights.to(block) @ block for block in self._blocks()])
        assert self._private is not None
        if not self._is_complete:
            joint = self.workers.gather(joint, self.width)
        if self._rest is not None:
            joint = joint + self.workers.sum(self._rest)
        return torch.cat([joint, self.workers.sum(self._private)])

    def weighted(self, weights: Tensor) -> Tensor:
        """The flat gradient of the weighted sum of the losses, by one backward pass."""
        grads: list[Tensor | None] = [None] * len(self.leaves)
        self.losses = None
        for compute in self.micro_batches:
            grads = _added(grads, self._weighted_gradients(compute(), weights))
        return self.workers.sum(torch.cat(_flat(grads, self.leaves)))

    # Functions of their own, so that nothing holds one graph while the next is made.
    def _weighted_gradients(self, losses: Losses, weights: Tensor) -> Sequence[Tensor | None]:
        self._add_up(losses)
        terms = [
            losses.tasks[task] * weight
            for task, weight in zip(self.tasks, weights.unbind(), strict=True)
        ]
        total = sum(terms, start=losses.rest)
        if not total.requires_grad:
            return [None] * len(self.leaves)
        return torch.autograd.grad(total, self.leaves, allow_unused=True)

    def _add_up(self, losses: Losses) -> None:
        values = torch.stack(losses.tasks).detach()
        if self.losses is None:
            self.losses = values
        else:
            self.losses = self.losses + values

    def _blocks(self) -> Iterator[Tensor]:
        """The rows that this worker holds, cut into blocks [K, n], n <= BLOCK, in the order of the
        columns.
        """
        if self._rows is None:
            self._rows = self._computed_rows()
        if isinstance(self._rows, Tensor):
            yield from self._rows.split(BLOCK, dim=1)
        else:
            for leaf in self._rows:
                for pieces in zip(*(row.split(BLOCK) for row in leaf), strict=True):
                    yield torch.stack(pieces)

    def _computed_rows(self) -> Tensor | list[Sequence[Tensor]]:
        shared = self.leaves[: self.num_shared]
        rows: list[list[Tensor | None]] = [[None] * len(shared) for _ in self.tasks]
        rest: list[Tensor | None] = [None] * len(self.leaves)
        has_rest = False
        self.losses = None
        for compute in self.micro_batches:
            # A matter of the model, so the same on all workers and in all passes.
            has_rest = self._add_gradients(compute(), rows, rest)
        none = self.leaves[0].new_zeros(0)
        flat_rest = _flat(rest, self.leaves)
        if has_rest:
            self._rest = torch.cat([none, *flat_rest[: len(shared)]])
        else:
            self._rest = None
        self._private = torch.cat([none, *flat_rest[len(shared) :]])
        flat = [_flat(row, shared) for row in rows]
        if shared and self.workers.size == 1:
            return list(zip(*flat, strict=True))
        return self.workers.sum_to_shard(torch.stack([torch.cat([none, *row]) for row in flat]))

    def _add_gradients(
        self, losses: Losses, rows: list[list[Tensor | None]], rest: list[Tensor | None]
    ) -> bool:
        """Adds the gradients of these losses to the rows and the rest; returns whether there are
        terms that belong to no task.
        """
        self._add_up(losses)
        has_rest = losses.rest.requires_grad
        if has_rest:
            grads = torch.autograd.grad(
                losses.rest, self.leaves, retain_graph=True, allow_unused=True
            )
            rest[:] = _added(rest, grads)
        for index, task in enumerate(self.tasks):
            # The last one frees the graph, before anything is made of the rows.
            more = index + 1 < len(self.tasks)
            grads = torch.autograd.grad(
                losses.tasks[task], self.leaves, retain_graph=more, allow_unused=True
            )
            rows[index] = _added(rows[index], grads[: self.num_shared])
            rest[self.num_shared :] = _added(rest[self.num_shared :], grads[self.num_shared :])
        return has_rest


def _joined(pieces: list[Sequence[Tensor]], width: int) -> Tensor:
    """The rows [K, width] of the pieces, which are let go one by one."""
    joined = pieces[0][0].new_empty(len(pieces[0]), width)
    end = width
    while pieces:
        leaf = pieces.pop()
        start = end - len(leaf[0])
        torch.stack(list(leaf), out=joined[:, start:end])
        end = start
    return joined


def _added(grads: Sequence[Tensor | None], others: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The sums of two gradients of each leaf; None is zero."""
    sums: list[Tensor | None] = []
    for one, other in zip(grads, others, strict=True):
        if one is None:
            sums.append(other)
        elif other is None:
            sums.append(one)
        else:
            sums.append(one + other)
    return sums


def _flat(grads: Sequence[Tensor | None], leaves: Sequence[Tensor]) -> list[Tensor]:
    """Each gradient as a vector; None becomes zeros that take no memory."""
    vectors = []
    for grad, leaf in zip(grads, leaves, strict=True):
        if grad is None:
            vectors.append(leaf.new_zeros(1).expand(leaf.numel()))
        else:
            vectors.append(grad.reshape(-1))
    return vectors
