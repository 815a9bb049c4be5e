"""Where an inner loop that diverges begins to, and which rates would not."""

import math
from itertools import pairwise
from typing import NamedTuple

import torch

from raymtl.encoders.norm import after_steps
from raymtl.learners.base import MetaLearner, Objective
from raymtl.sharing import SharingArchitecture
from raymtl.types import Batch, Params

GROWTH = 1000.0  # of the support loss, beyond which a loop counts as diverging
FIRST_STEPS = 3
HALVINGS = 20


class Divergence(NamedTuple):
    """`loss` is the support loss after the inner step `step`, the first of which is 1, and `before`
    without any.

    `rate` is the largest of learner.inner_lr and its halves at which the first steps lower the
    support loss, one after the other; None where none of them does, as where rates are learned.
    """

    step: int
    loss: float
    before: float
    rate: float | None

    def __str__(self) -> str:
        found = f"after inner step {self.step} the support loss is {self.loss:.3g}, from {self.before:.3g} before the first"
        if self.rate is None:
            return found
        return f"{found}; the first steps lower it with learner.inner_lr from {self.rate / 10:.2g} to {self.rate:.2g}"


@torch.no_grad()
def divergence(
    learner: MetaLearner,
    model: SharingArchitecture,
    params: Params,
    support: Batch,
    objective: Objective,
) -> Divergence | None:
    """Of the inner loop on one support set; None where it arrives at a finite loss, no GROWTH times
    that it began with.

    None, too, where the loss is not finite to begin with: then it is not the inner loop that
    diverges. A loop that has diverged is taken to stay so: the step is found by bisection.
    """

    def after(steps: int, own: MetaLearner = learner) -> float:
        adapted = own.adapt(model, params, support, objective, steps)
        with after_steps(steps):
            return float(objective(adapted, own.predict(model, adapted, support.inputs), support))

    if not learner.num_steps:
        return None
    before = after(0)
    if not math.isfinite(before):
        return None

    def fine(loss: float) -> bool:
        return math.isfinite(loss) and loss <= GROWTH * before

    losses = {learner.num_steps: after(learner.num_steps)}
    low, high = 0, learner.num_steps
    if fine(losses[high]):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        losses[middle] = after(middle)
        low, high = (middle, high) if fine(losses[middle]) else (low, middle)

    rate: float | None = None
    inner_lr: float = learner.inner_lr  # type: ignore[attr-defined]
    for halved in range(1, HALVINGS + 1):
        slower = learner.model_copy(update={"inner_lr": inner_lr / 2**halved})
        way = [
            before,
            *(after(step, slower) for step in range(1, min(FIRST_STEPS, learner.num_steps) + 1)),
        ]
        if all(later < earlier for earlier, later in pairwise(way)):
            rate = inner_lr / 2**halved
            break
    return Divergence(high, losses[high], before, rate)
