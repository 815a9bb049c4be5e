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
    """Returns how many columns of so many rows are multiplied at once."""
    return min(BLOCK, max(1, BLOCK_SIZE // max(1, num_rows)))


def inner_products(rows: Tensor) -> Tensor:
    """Returns the inner products [K, K] of rows [K, P].

    The result is symmetric, so of many rows only one of its halves is computed.
    """
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
    """Yields for each seed the gradients of seed @ block by the leaves; None where there is none.

    `block` is [C] and `seeds` [S, C]. One backward pass computes the gradients of all seeds.
    """
    if not leaves:
        return iter([()] * len(seeds))
    grads = torch.autograd.grad(
        block, leaves, seeds, retain_graph=True, allow_unused=True, is_grads_batched=True
    )
    columns = [[None] * len(seeds) if grad is None else grad.unbind() for grad in grads]
    return zip(*columns, strict=True)


def stacked(rows: Sequence[Tensor], columns: int) -> Iterator[Tensor]:
    """Yields K vectors [P] as blocks [K, n] of `columns` columns; the last one may have fewer."""
    for pieces in zip(*(row.split(columns) for row in rows), strict=True):
        yield torch.stack(pieces)


def add_up(rows: Sequence[Tensor], weights: Tensor, leaf: Tensor, out: Tensor) -> None:
    """Writes the weighted sum of K vectors into `out`, a vector in the order of the leaf's indices.

    The vectors are in the order of the leaf's memory, which differs for channels-last weights.
    """
    total = torch.empty_like(out) if _has_channels_last(leaf) else out
    columns = num_columns(len(rows))
    for block, piece in zip(stacked(rows, columns), total.split(columns), strict=True):
        torch.mv(block.T, weights, out=piece)
    if total is not out:
        out.view(leaf.shape).copy_(_by_index(total, leaf))


def joined(pieces: list[Sequence[Tensor]], leaves: Sequence[Tensor]) -> Tensor:
    """Joins the gradients of K tasks by each leaf to rows [K, P], in the order of indices.

    `pieces` has K vectors for each leaf. It is emptied on the way, so that memory is freed.
    """
    width = sum(leaf.numel() for leaf in leaves)
    matrix = pieces[0][0].new_empty(len(pieces[0]), width)
    end = width
    for leaf in reversed(leaves):
        start = end - leaf.numel()
        for row, piece in zip(matrix, pieces.pop(), strict=True):
            row[start:end].view(leaf.shape).copy_(_by_index(piece, leaf))
        end = start
    return matrix


def in_memory_order(grads: Sequence[Tensor | None], leaves: Sequence[Tensor]) -> list[Tensor]:
    """Returns each gradient as a vector in the order of its leaf's memory.

    A gradient that has the memory layout of its leaf is not copied. None becomes zeros.
    """
    moved: list[Tensor | None] = []
    for grad, leaf in zip(grads, leaves, strict=True):
        if grad is not None and _has_channels_last(leaf):
            moved.append(grad.permute(0, 2, 3, 1))
        else:
            moved.append(grad)
    return flattened(moved, leaves)


def _by_index(vector: Tensor, leaf: Tensor) -> Tensor:
    """A view of the vector, which is in the order of the leaf's memory, as the leaf is indexed."""
    if not _has_channels_last(leaf):
        return vector.view(leaf.shape)
    channels, height, width = leaf.shape[1:]
    return vector.view(-1, height, width, channels).permute(0, 3, 1, 2)


def _has_channels_last(leaf: Tensor) -> bool:
    return (
        leaf.ndim == 4
        and not leaf.is_contiguous()
        and leaf.is_contiguous(memory_format=torch.channels_last)
    )


def added(grads: Sequence[Tensor | None], others: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Adds two gradients of each leaf, where None counts as zero."""
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
    """Returns each gradient as a vector; None becomes zeros that take no memory."""
    vectors = []
    for grad, leaf in zip(grads, leaves, strict=True):
        if grad is None:
            vectors.append(leaf.new_zeros(1).expand(leaf.numel()))
        else:
            vectors.append(grad.reshape(-1))
    return vectors
