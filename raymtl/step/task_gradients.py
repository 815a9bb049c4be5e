"""The gradients of the tasks in one outer step, exact over workers and micro-batches."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from raymtl.step.rows import (
    add_up,
    added,
    flattened,
    gradients_of_seeds,
    in_memory_order,
    inner_products,
    joined,
    num_columns,
    stacked,
)
from raymtl.step.workers import Workers
from raymtl.tasks import Group, in_task_order


class Losses(NamedTuple):
    """What one micro-batch of one worker adds to the losses of the meta-batch, with its graph."""

    blocks: tuple[Tensor, ...]
    """The losses [C] of each group of tasks. They are apart so that the gradient of one task passes
    through the heads of its own group alone.
    """
    groups: tuple[Group, ...]
    """The tasks of each block; every task is in one."""
    rest: Tensor
    """The sum of the terms that belong to no task, a scalar."""
    rows_at_once: int = 1
    """The number of tasks whose gradients one backward pass may compute."""

    @property
    def values(self) -> Tensor:
        """The losses of all tasks, [K]."""
        return in_task_order(self.blocks, self.groups)


class TaskGradients:
    """The gradients of the task losses as rows of a matrix, one row for each task.

    Rows are summed over all workers before they are used. They are computed at their first use,
    with one backward pass for each task. They stay in the pieces that autograd makes, one for each
    leaf: copying them into one matrix would cost more than all that is done with it.

    Args:
        micro_batches: functions that each compute the losses of some of this worker's episodes.
            They run one after the other, so that only one graph is in memory. The attribute
            `losses` has their sums [num_tasks] after `compute` or `weighted`.
        tasks: the indices of the tasks that have labels; the rows are in this order.
        shared: the parameters that several tasks share, whose gradients make up the rows.
        private: the parameters of a single task each; `combine` gives them the plain sum.
        workers: this process among those that share the meta-batch.
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
        # The rows side by side: one matrix, or for each leaf K vectors in the order of its memory.
        self._rows: Tensor | list[Sequence[Tensor]] | None = (
            None  # [K, P / size] or, once changed, [K, P]
        )
        self._rest: Tensor | None = (
            None  # what is unweighted: on the shared parameters, where there is any ...
        )
        self._private: Tensor | None = None  # ... and on the private ones
        self._is_complete = workers.size == 1
        self.losses: Tensor | None = None
        self._row_of = {task: row for row, task in enumerate(tasks)}

    def compute(self) -> None:
        """Computes the rows now, and not at their first use."""
        self._rows = self._computed_rows()

    def gramian(self) -> Tensor:
        """Inner products [K, K] of the tasks' gradients on the shared parameters.

        Every worker holds the summed columns of its own shard and multiplies those; the products
        add up. The mean of the workers' Gramians would not be the Gramian of their mean.
        """
        products = torch.stack([inner_products(block) for block in self._blocks()]).sum(0)
        if self._is_complete:
            return products
        return self.workers.sum(products)

    def rows(self) -> Tensor:
        """The matrix of all rows [K, P], the same on every worker."""
        if self._rows is None:
            self._rows = self._computed_rows()
        if isinstance(self._rows, Tensor):
            rows = self._rows
        else:
            rows = joined(self._rows, self.leaves[: self.num_shared])
        if not self._is_complete:
            rows = self.workers.gather(rows, self.width)
        self._rows, self._is_complete = rows, True
        return rows

    def change(self, function: Callable[[Tensor], Tensor]) -> None:
        """Replaces the rows [K, P] by `function(rows)`, which is the same on every worker."""
        self._rows = function(self.rows())

    def combine(self, weights: Tensor) -> Tensor:
        """Returns the gradient of all parameters as one vector [P], the shared ones first.

        That of the shared parameters is the sum of the rows by `weights` [K], that of the private
        ones the plain sum.
        """
        if self._rows is None:
            self._rows = self._computed_rows()
        assert self._private is not None
        flat = self._private.new_empty(self.width + len(self._private))
        joint = flat[: self.width]
        if isinstance(self._rows, Tensor):
            shard = torch.cat([weights.to(block) @ block for block in self._blocks()])
            if not self._is_complete:
                shard = self.workers.gather(shard, self.width)
            joint.copy_(shard)
        else:
            shared = self.leaves[: self.num_shared]
            parts = joint.split([leaf.numel() for leaf in shared])
            for leaf, own, part in zip(shared, self._rows, parts, strict=True):
                add_up(own, weights.to(part), leaf, part)
        if self._rest is not None:
            joint += self.workers.sum(self._rest)
        flat[self.width :] = self.workers.sum(self._private)
        return flat

    def weighted(self, weights: Tensor) -> Tensor:
        """Returns the gradient of the sum of the losses by `weights`, as one vector [P].

        It takes one backward pass, whatever the number of tasks.
        """
        grads: list[Tensor | None] = [None] * len(self.leaves)
        self.losses = None
        for compute in self.micro_batches:
            grads = added(grads, self._weighted_gradients(compute(), weights))
        return self.workers.sum(torch.cat(flattened(grads, self.leaves)))

    # Functions of their own, so that nothing holds one graph while the next is made.
    def _weighted_gradients(self, losses: Losses, weights: Tensor) -> Sequence[Tensor | None]:
        self._add_up(losses)
        by_task = weights.new_zeros(sum(map(len, losses.groups)))
        by_task[torch.tensor(self.tasks, device=weights.device, dtype=torch.int64)] = weights
        total = losses.rest
        for block, group in zip(losses.blocks, losses.groups, strict=True):
            total = total + block @ by_task[list(group)].to(block)
        if not total.requires_grad:
            return [None] * len(self.leaves)
        return torch.autograd.grad(total, self.leaves, allow_unused=True)

    def _add_up(self, losses: Losses) -> None:
        values = losses.values.detach()
        if self.losses is None:
            self.losses = values
        else:
            self.losses = self.losses + values

    def _blocks(self) -> Iterator[Tensor]:
        """The rows that this worker holds, cut into blocks [K, n], n <= `num_columns`, in the order
        of the columns.
        """
        columns = num_columns(len(self.tasks))
        if self._rows is None:
            self._rows = self._computed_rows()
        if isinstance(self._rows, Tensor):
            yield from self._rows.split(columns, dim=1)
        else:
            for leaf in self._rows:
                yield from stacked(leaf, columns)

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
        flat_rest = flattened(rest, self.leaves)
        if has_rest:
            self._rest = torch.cat([none, *flat_rest[: len(shared)]])
        else:
            self._rest = None
        self._private = torch.cat([none, *flat_rest[len(shared) :]])
        if shared and self.workers.size == 1:
            return list(zip(*(in_memory_order(row, shared) for row in rows), strict=True))
        flat = [flattened(row, shared) for row in rows]
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
            rest[:] = added(rest, grads)
        if losses.rows_at_once == 1:
            self._add_rows_one_by_one(losses, rows, rest)
        else:
            self._add_rows_at_once(losses, rows, rest)
        return has_rest

    def _add_rows_one_by_one(
        self, losses: Losses, rows: list[list[Tensor | None]], rest: list[Tensor | None]
    ) -> None:
        seeds = [
            (self._row_of[task], block, seed)
            for block, group in zip(losses.blocks, losses.groups, strict=True)
            for task, seed in zip(group, torch.eye(len(group)).to(block), strict=True)
            if task in self._row_of
        ]
        for number, (index, block, seed) in enumerate(seeds, start=1):
            # The last one frees the graph, before anything is made of the rows.
            grads = torch.autograd.grad(
                block, self.leaves, seed, retain_graph=number < len(seeds), allow_unused=True
            )
            rows[index] = added(rows[index], grads[: self.num_shared])
            rest[self.num_shared :] = added(rest[self.num_shared :], grads[self.num_shared :])

    def _add_rows_at_once(
        self, losses: Losses, rows: list[list[Tensor | None]], rest: list[Tensor | None]
    ) -> None:
        """The same with one backward pass for several tasks of a group, which pass through the
        shared parameters alone, and one for the private parameters of all tasks.
        """
        shared, private = self.leaves[: self.num_shared], self.leaves[self.num_shared :]
        total = losses.rest.new_zeros(())
        for block, group in zip(losses.blocks, losses.groups, strict=True):
            places = [place for place, task in enumerate(group) if task in self._row_of]
            if not places:
                continue
            seeds = torch.eye(len(group)).to(block)[places]
            total = total + seeds.sum(0) @ block
            indices = [self._row_of[group[place]] for place in places]
            for start in range(0, len(places), losses.rows_at_once):
                chosen = slice(start, start + losses.rows_at_once)
                for index, row in zip(
                    indices[chosen], gradients_of_seeds(block, shared, seeds[chosen]), strict=True
                ):
                    rows[index] = added(rows[index], row)
        if private:
            grads = torch.autograd.grad(total, private, allow_unused=True)
            rest[self.num_shared :] = added(rest[self.num_shared :], grads)
