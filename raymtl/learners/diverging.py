"""Finds the inner step at which an inner loop diverges, and rates at which it does not."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch

from raymtl.encoders.norm import after_steps
from raymtl.learners.base import MetaLearner, Objective
from raymtl.sharing import SharingArchitecture
from raymtl.types import Batch, Params

GROWTH = 1000.0  # of the support loss; a loop beyond it counts as diverging
FIRST_STEPS = 3
HALVINGS = 20


class Divergence(NamedTuple):
    """The inner step at which an inner loop diverges, and how to avoid it.

    `step` counts from 1. `loss` is the support loss after that step, and `before` the support loss
    before the first step. `rate` is the largest of learner.inner_lr / 2, / 4, ... at which each of
    the first steps lowers the support loss. It is None if no such rate exists or if rates are
    learned.
    """

    step: int
    loss: float
    before: float
    rate: float | None

    def __str__(self) -> str:
        words = (
            f"after inner step {self.step} the support loss is {self.loss:.3g}, from "
            f"{self.before:.3g} before the first"
        )
        if self.rate is None:
            return words
        return (
            f"{words}; the first steps lower it with learner.inner_lr from {self.rate / 10:.2g} to "
            f"{self.rate:.2g}"
        )


@torch.no_grad()
def divergence(
    learner: MetaLearner,
    model: SharingArchitecture,
    params: Params,
    support: Batch,
    objective: Objective,
) -> Divergence | None:
    """Where the inner loop on one support set diverges; None if it does not.

    A step diverges if the support loss after it is not finite or has grown by GROWTH. The first
    such step is found by bisection. If the loss is not finite before it, the result is None.
    """

    def loss_after(steps: int, learner: MetaLearner = learner) -> float:
        adapted = learner.adapt(model, params, support, objective, steps)
        with after_steps(steps):
            predictions = learner.predict(model, adapted, support.inputs)
            return float(objective(adapted, predictions, support))

    if not learner.num_steps:
        return None
    before = loss_after(0)
    if not math.isfinite(before):
        return None

    def is_fine(loss: float) -> bool:
        return math.isfinite(loss) and loss <= GROWTH * before

    losses = {learner.num_steps: loss_after(learner.num_steps)}
    low, high = 0, learner.num_steps
    if is_fine(losses[high]):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        losses[middle] = loss_after(middle)
        if is_fine(losses[middle]):
            low = middle
        else:
            high = middle
    return Divergence(high, losses[high], before, _lowering_rate(learner, before, loss_after))


def _lowering_rate(
    learner: MetaLearner, before: float, loss_after: Callable[[int, MetaLearner], float]
) -> float | None:
    """The largest of lr / 2, lr / 4, ... at which each of the first steps lowers the loss."""
    inner_lr: float = learner.inner_lr  # type: ignore[attr-defined] # learners with steps have it
    num_steps = min(FIRST_STEPS, learner.num_steps)
    for halvings in range(1, HALVINGS + 1):
        rate: float = inner_lr / 2**halvings
        slower = learner.model_copy(update={"inner_lr": rate})
        path = [before, *(loss_after(step, slower) for step in range(1, num_steps + 1))]
        if all(later < earlier for earlier, later in pairwise(path)):
            return rate
    return None
