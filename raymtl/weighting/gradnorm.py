"""GradNorm (Chen et al., 2018, arXiv:1711.02257).

w descends sum_t |G_t - mean(G) r_t^alpha|, with G_t = |w_t g_t|, r_t = (L_t / L_t(0)) over its
mean, and the second term held constant; then w is renormalised to sum to K.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from raymtl.types import Task
from raymtl.weighting.base import GradientWeighting, GradientWeightingSpec, Jacobian


def slope(weights: Tensor, norms: Tensor, progress: Tensor, alpha: float) -> Tensor:
    """The derivative [K] of the paper's sum over mean(G) with respect to log w; `progress` is L_t /
    L_t(0).
    """
    smallest = torch.finfo(norms.dtype).tiny
    scaled = weights * norms
    rates = progress / progress.mean().clamp(min=smallest)
    return (
        torch.sign(scaled - scaled.mean() * rates**alpha)
        * scaled
        / scaled.mean().clamp(min=smallest)
    )


class GradNorm(GradientWeighting):
    """Brings the norms of the weighted gradients to a common size, larger for tasks that learn
    slowly.

    `asymmetry` is the paper's alpha. L_t(0) is the first loss of task t above 0. A step uses the
    weights as they are before w moves. The tasks that have labels in a step keep the sum of their
    weights, so the weights of all tasks always sum to num_tasks.

    Deviations from the paper:
    - w moves by steps on log w, so that it stays positive, along the slope of the sum divided by
      mean(G). So `lr` is a relative change of w, and the unit of the losses does not matter. The
      paper steps on w.
    - g_t is the gradient of all shared parameters, not only of the last shared layer. Parameters of
      a single task follow its loss unweighted.
    - A task whose gradient is exactly zero, such as one that shares no parameter, does not count in
      the mean.
    """

    log_weights: Tensor
    initial: Tensor

    def __init__(self, num_tasks: int, asymmetry: float, lr: float) -> None:
        super().__init__(num_tasks)
        self.asymmetry, self.lr = asymmetry, lr
        self.register_buffer("log_weights", torch.zeros(num_tasks))
        self.register_buffer("initial", torch.zeros(num_tasks))  # 0 where no loss has been seen

    def loss_weights(self) -> Tensor:
        return self.log_weights.exp()

    def weigh(self, losses: Tensor, jacobian: Jacobian, tasks: Tensor) -> Tensor:
        losses = losses.detach().clamp(min=0)
        log_weights, initial = self.log_weights.to(losses), self.initial.to(losses)
        present_weights, first = log_weights[tasks], initial[tasks]
        weights = len(tasks) * present_weights.softmax(0)
        first = torch.where(first > 0, first, losses)
        progress = losses / first.clamp(min=torch.finfo(first.dtype).tiny)
        norms = jacobian.gramian().diagonal().clamp(min=0).sqrt()
        active = norms > 0
        moved = present_weights.clone()
        if active.any():
            moved[active] -= self.lr * slope(
                weights[active], norms[active], progress[active], self.asymmetry
            )
        self.log_weights = log_weights.index_put(
            (tasks,), moved.log_softmax(0) + present_weights.logsumexp(0)
        )
        self.initial = initial.index_put((tasks,), first)
        return weights


class GradNormSpec(GradientWeightingSpec):
    """Brings the gradients to one size, which is larger for tasks that learn slowly.

    `asymmetry` is the exponent of that effect, the paper's alpha. `lr` is the learning rate of the
    weights.

    Example: `weighting: {name: gradnorm, asymmetry: 0.5}`
    """

    name: Literal["gradnorm"] = "gradnorm"
    helps: ClassVar[str] = "gradients differ in size and tasks learn at different pace"
    asymmetry: NonNegativeFloat = 1.5
    lr: PositiveFloat = 0.025

    def build(self, tasks: Sequence[Task]) -> GradNorm:
        return GradNorm(len(tasks), self.asymmetry, self.lr)
