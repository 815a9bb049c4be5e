"""Gradients of tasks as rows of a matrix: their sums, inner products and computation."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

BLOCK = 1 << 16
"""The most columns that are multiplied at once.

They stay in a CPU's cache, and a float32 sum of more columns would lose digits.
"""
BLOCK_SIZE = 1 << 22
"""The most numbers that are multiplied at once, and so copied beside the rows."""
SLAB = 128
"""Rows that are multiplied at once with those above them."""


def num_columns(num_rows: int) -> int:
    """How many columns of the rows are multiplied at once."""
    return min(BLOCK, max(1, BLOCK_SIZE // max(1, num_rows)))


def inner_products(rows: Tensor) -> Tensor:
    """Inner products of the rows, [K, K]; of many rows, each pair of slabs is multiplied once."""
    if len(rows) < 2 * SLAB:
        return rows @ rows.T
    products = rows.new_empty(len(rows), len(rows))
    for start in range(0, len(rows), SLAB):
        own, others = slice(start, start + SLAB), slice(start + SLAB)
        slab = rows[own] @ rows[others].T
        products[own, others] = slab
        products[others, own] = slab.T
    return products


def gradients_of_seeds(
    block: Tensor, leaves: Sequence[Tensor], seeds: Tensor
) -> Iterator[tuple[Tensor | None, ...]]:
    """The gradients of seed @ block for each leaf, one after the other for each of the seeds."""
    if not leaves:
        return iter([()] * len(seeds))
    grads = torch.autograd.grad(
        block, leaves, seeds, retain_graph=True, allow_unused=True, is_grads_batched=True
    )
    columns = [[None] * len(seeds) if grad is None else grad.unbind() for grad in grads]
    return zip(*columns, strict=True)


def joined(pieces: list[Sequence[Tensor]], width: int) -> Tensor:
    """The rows [K, width] of the pieces, which are let go one by one."""
    matrix = pieces[0][0].new_empty(len(pieces[0]), width)
    end = width
    while pieces:
        leaf = pieces.pop()
        start = end - len(leaf[0])
        torch.stack(list(leaf), out=matrix[:, start:end])
        end = start
    return matrix


def added(grads: Sequence[Tensor | None], others: Sequence[Tensor | None]) -> list[Tensor | None]:
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


def flattened(grads: Sequence[Tensor | None], leaves: Sequence[Tensor]) -> list[Tensor]:
    """Each gradient as a vector; None becomes zeros that take no memory."""
    vectors = []
    for grad, leaf in zip(grads, leaves, strict=True):
        if grad is None:
            vectors.append(leaf.new_zeros(1).expand(leaf.numel()))
        else:
            vectors.append(grad.reshape(-1))
    return vectors
