"""TIES (Yadav et al., 2023, arXiv:2306.01708): theta = theta_0 + lambda tau.

1. Trim: of each task vector tau_t = theta_t - theta_0, the share k of the largest magnitudes stays,
   and the rest is 0.
2. Elect: the sign of each number is that of the sum of the trimmed vectors.
3. Merge: tau is the mean of the trimmed numbers that are not 0 and have the elected sign.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from raymtl.types import Params


class TIES(NamedTuple):
    """Merges only numbers that are large and agree in sign.

    Numbers of equal magnitude at the end of the share k all stay. Where the trimmed numbers cancel,
    no sign is elected and tau is 0; the authors' code takes the commonest sign there.
    """

    scale: float
    """lambda."""
    density: float
    """k, the share of numbers of a task vector that stays, above 0 and at most 1."""

    def change(self, vectors: Sequence[Params]) -> dict[str, Tensor]:
        """theta - theta_0, from the task vectors, which have the same names and shapes."""
        trimmed_TP = torch.stack([self._trimmed(_flat(vector)) for vector in vectors])
        sign_P = trimmed_TP.sum(0).sign()
        agrees_TP = trimmed_TP.sign() == sign_P
        sum_P = torch.where(agrees_TP, trimmed_TP, 0).sum(0)
        tau_P = sum_P / agrees_TP.sum(0).clamp(min=1)
        return _in_shapes_of(vectors[0], self.scale * tau_P)

    def _trimmed(self, vector_P: Tensor) -> Tensor:
        size = vector_P.numel()
        num_kept = max(1, round(self.density * size))
        least = vector_P.abs().kthvalue(size - num_kept + 1).values
        return torch.where(vector_P.abs() >= least, vector_P, 0)


def _flat(params: Params) -> Tensor:
    return torch.cat([value.flatten() for value in params.values()])


def _in_shapes_of(params: Params, flat_P: Tensor) -> dict[str, Tensor]:
    pieces = flat_P.split([value.numel() for value in params.values()])
    return {
        name: piece.view(value.shape)
        for (name, value), piece in zip(params.items(), pieces, strict=True)
    }
