"""What a training is given by whoever runs it."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

from raymtl.step.workers import Workers


class TrainContext(NamedTuple):
    """What differs between a notebook, a Tune trial and a Ray Train worker."""

    report: Callable[[dict[str, float]], None]
    """Takes the scores of a step, after its checkpoint was written."""
    log_step: Callable[[Mapping[str, float | None]], None]
    """Takes the numbers of every step, on the first worker; the loss of a task without labels is
    None.
    """
    workers: Workers = Workers()
    device: torch.device = torch.device("cpu")
    is_preempted: Callable[[], bool] = lambda: False
    """Whether a worker's machine or process is about to be taken away; called on all workers after
    the same steps.
    """
    confirm_saved: Callable[[], None] = lambda: None
    """Called where `is_preempted` was true, after the first worker has written a checkpoint."""
    register_emergency_hook: Callable[[Callable[[], bool]], None] = lambda hook: None
    """Takes `EmergencyCheckpoint.write`, for whoever can call it while the training waits for a
    worker that is lost.
    """
