"""Projection onto the dual cone by enumeration of its faces, for tests of those that use an active set."""

import itertools

import torch
from torch import Tensor


def projected(vector: Tensor, rows: Tensor) -> Tensor:
    """The d [P] nearest to `vector` that has no negative product with any of the `rows` [K, P]."""
    best = torch.zeros_like(vector)
    for number in range(len(rows) + 1):
        for face in itertools.combinations(range(len(rows)), number):
            normals = rows[list(face)]
            candidate = (
                vector - torch.linalg.pinv(normals) @ (normals @ vector) if number else vector
            )
            if (rows @ candidate > -1e-10).all() and (candidate - vector).norm() < (
                best - vector
            ).norm():
                best = candidate
    return best
