"""Task arithmetic (Ilharco et al., 2023, arXiv:2212.04089): theta = theta_0 + lambda sum_t tau_t.

tau_t = theta_t - theta_0 is the task vector of a model that was trained on task t from theta_0.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from raymtl.types import Params


class TaskArithmetic(NamedTuple):
    """Adds up the task vectors, all by one factor."""

    scale: float
    """lambda. 1 / T of T tasks gives the mean of their models."""

    def change(self, vectors: Sequence[Params]) -> dict[str, Tensor]:
        """theta - theta_0, from the task vectors, which have the same names and shapes."""
        return {
            name: self.scale * torch.stack([vector[name] for vector in vectors]).sum(0)
            for name in vectors[0]
        }
