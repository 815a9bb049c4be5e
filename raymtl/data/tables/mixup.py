"""Mixup (Zhang et al., 2018, arXiv:1710.09412) within a task: query examples are mixed with others
of their episode, as MetaMix does (Yao et al., 2021, arXiv:2007.13040), and their labels with them.

    x = s x_i + (1 - s) x_j,    y = s y_i + (1 - s) y_j,    s ~ Beta(alpha, alpha)

Deviations: every example draws its own share s; pictures are rounded to 8 bits; support examples
are not mixed, so that every learner can read their labels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from raymtl.data.draws import Draws
from raymtl.types import Batch, Task


def mixed(batch: Batch, tasks: Sequence[Task], alpha: float, draws: Draws) -> Batch:
    """Pictures [E, N, C, H, W] and targets, each mixed with those of another of its episode.

    A label is known where both are. Targets of classes become probabilities, [E, N, classes].
    """
    from scipy.special import betaincinv

    pictures = batch.inputs
    assert isinstance(pictures, Tensor)
    number = pictures.shape[1]
    others = torch.from_numpy(draws.choice(number, number))
    shares = torch.from_numpy(betaincinv(alpha, alpha, draws.uniform(0, 1, number)))
    blended = _blended(pictures.float(), others, shares.float()).round().to(pictures.dtype)
    targets = dict(batch.targets)
    for task in tasks:
        own = task.kind.mixable(batch.targets[task.name], task.out_features)
        targets[task.name] = _blended(own, others, shares.to(own))
    masks = {name: mask & _chosen(mask, others) for name, mask in batch.masks.items()}
    return Batch(blended, targets, masks)


def _chosen(values: Tensor, others: Tensor) -> Tensor:
    """[E, N, ...] -> the examples with these numbers [E, N] of each episode."""
    return values[torch.arange(len(values))[:, None], others]


def _blended(values: Tensor, others: Tensor, shares: Tensor) -> Tensor:
    """[E, N, ...]: each with the other, in their shares [E, N]."""
    shares = shares.reshape(*shares.shape, *[1] * (values.dim() - 2))
    return torch.lerp(_chosen(values, others), values, shares)
