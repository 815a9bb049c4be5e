"""Equal weights."""

import torch

from raymtl.tasks import regression
from raymtl.weighting import EqualSpec

TASKS = [regression(name, 0.0, 1.0) for name in "abc"]


def test_the_total_is_the_sum_of_the_losses() -> None:
    for dtype in (torch.float32, torch.float64):
        losses = torch.tensor([0.0, -1.0, 1e9], dtype=dtype)
        weights = EqualSpec().build(TASKS)(losses)
        assert weights.dtype == dtype
        assert weights.tolist() == [1, 1, 1]
