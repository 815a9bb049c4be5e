"""An exponential moving average of the parameters, which is scored and kept in their place."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

WARMUP = 10.0
"""The larger, the longer the average follows the parameters closely at the start."""


class MovingAverage:
    """average <- d average + (1 - d) parameters after every step.

    d = min(decay, (1 + t) / (10 + t)), where t counts the steps of the stage from 1. The bound by t
    is that of TensorFlow's ExponentialMovingAverage: without it the first parameters would weigh in
    for some 1 / (1 - decay) steps.
    """

    def __init__(self, decay: float, params: Mapping[str, Tensor]) -> None:
        self.decay = decay
        self.params = {name: value.detach().clone() for name, value in params.items()}
        """The average, by the names of the parameters."""

    @torch.no_grad()
    def update(self, params: Mapping[str, Tensor], step: int) -> None:
        """Takes the parameters after a step, which counts from 1."""
        move = get_ema_multi_avg_fn(min(self.decay, (1 + step) / (WARMUP + step)))
        move(list(self.params.values()), [params[name].detach() for name in self.params], None)

    @torch.no_grad()
    def restore(self, saved: Mapping[str, Tensor]) -> None:
        """Takes the average of a checkpoint. Raises KeyError for a parameter that it lacks."""
        for name, value in self.params.items():
            value.copy_(saved[name])
