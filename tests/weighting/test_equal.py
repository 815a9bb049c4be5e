"""Equal weights."""

import torch

from raymtl.weighting import EqualSpec
from tests.weighting import ABC


def test_the_total_is_the_sum_of_the_losses() -> None:
    for dtype in (torch.float32, torch.float64):
        losses = torch.tensor([0.0, -1.0, 1e9], dtype=dtype)
        weights = EqualSpec().build(ABC)(losses)
        assert weights.dtype == dtype
        assert weights.tolist() == [1, 1, 1]
