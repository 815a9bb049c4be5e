"""Cross-entropies for classes of which some are rare, or whose labels are not to be trusted wholly.

    L = sum_c w_c q_c (1 - p_c)^gamma (-log p_c)

w_c are weights of the classes, q_c the target probabilities, smoothed towards equal ones by epsilon
(Szegedy et al., 2016, arXiv:1512.00567), and gamma >= 0 leaves easy examples to themselves (focal
loss: Lin et al., 2017, arXiv:1708.02002). Weights have a mean of 1 over the labels for training, so
that the mean loss over examples needs no other divisor: sums and counts of any number of workers
add up. torch divides by the weights of each batch instead.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from raymtl.tasks.groups import SharedLoss
from raymtl.types import ClassLoss


def balanced_weights(counts: np.ndarray) -> np.ndarray:
    """Weights [C] by which all classes that occur count alike; 1 for those that do not occur.

    `counts` [C] are numbers of labels for training. These are scikit-learn's balanced weights.
    """
    occurs = counts > 0
    shares = counts.sum() / (occurs.sum() * np.maximum(counts, 1))
    return np.where(occurs, shares, 1.0)


def normalised_weights(weights: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The same weights [C], with a mean of 1 over all labels for training."""
    scaled: np.ndarray = weights * counts.sum() / max(float(counts @ weights), 1e-300)
    return scaled


@dataclass(frozen=True)
class CrossEntropy:
    """The loss of each example [N]: logits [N, C], target [N] of classes or [N, C] of
    probabilities.

    `weights` are those of the classes, [C].
    """

    label_smoothing: float
    focal: float

    def __call__(self, logits: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
        if not self.label_smoothing and not self.focal and weights is None:
            return F.cross_entropy(logits, target, reduction="none")
        num_classes = logits.shape[-1]
        if target.ndim == 1:
            # Not F.one_hot, which looks at the values and so cannot run under vmap.
            target = target[:, None] == torch.arange(num_classes, device=target.device)
        smoothed = (1 - self.label_smoothing) * target.to(logits)
        smoothed = smoothed + self.label_smoothing / num_classes
        log_probs = logits.log_softmax(-1)
        terms = -smoothed * log_probs
        if self.focal:
            terms = terms * (1 - log_probs.exp()).clamp(min=0).pow(self.focal)
        if weights is not None:
            terms = terms * weights.to(logits)
        return terms.sum(-1)


@dataclass(frozen=True)
class BinaryCrossEntropy:
    """The loss of each example [N]: logits [N, 1], target [N] from 0 to 1.

    `weights` [2] are those of no and of yes.
    """

    label_smoothing: float
    focal: float

    def __call__(self, logits: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
        if weights is not None:
            weights = weights.to(logits)
        return self.of_logits(logits[:, 0], target.to(logits), weights)

    def of_logits(self, logits: Tensor, target: Tensor, weights: Tensor | None) -> Tensor:
        """The loss of each logit, of which target has the shape.

        `weights` [2] or [2, labels] are those of no and of yes, which broadcast with the logits.
        """
        if not self.label_smoothing and not self.focal and weights is None:
            return F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        target = (1 - self.label_smoothing) * target + self.label_smoothing / 2
        no, yes = (1 - target) * F.softplus(logits), target * F.softplus(-logits)
        if self.focal:
            no = no * logits.sigmoid().pow(self.focal)
            yes = yes * (-logits).sigmoid().pow(self.focal)
        if weights is not None:
            no, yes = weights[0] * no, weights[1] * yes
        return no + yes


def shared_loss(
    function: Callable[[float, float], Callable[..., Tensor]], options: ClassLoss
) -> SharedLoss:
    """The loss of a task with these options: tasks that differ in their weights alone share it."""
    numbers: tuple[tuple[float, ...], ...] = ()
    if options.weights:
        numbers = (options.weights,)
    return SharedLoss(function(options.label_smoothing, options.focal), numbers)
