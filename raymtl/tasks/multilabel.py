"""Several labels of one example, each of them yes or no or unknown."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from raymtl.tasks.class_loss import BinaryCrossEntropy, shared_loss
from raymtl.tasks.scores import (
    auroc,
    average_precision,
    balanced_accuracy,
    f1,
    log_loss,
    mean_ratio,
    mean_where,
)
from raymtl.types import PLAIN_LOSS, ClassLoss, LabelStatistics, Metric, Task, TaskKind


class MultilabelKind(TaskKind):
    """Targets say of each label whether it applies."""

    name = "multilabel"
    label_form = "set"
    has_label_sets = True
    has_thresholds = True
    takes_class_loss = True

    def make(self, name: str, labels: LabelStatistics, size: tuple[int, int]) -> Task:
        return multilabel(name, labels.num_classes, labels.class_loss)

    def summarise(self, target: np.ndarray, classes: Sequence[str]) -> dict[str, float]:
        counts = np.nansum(target, 0).astype(np.int64)
        return dict(zip(classes, counts.tolist(), strict=True))

    def num_classes(self, out_features: int) -> int:
        return out_features


MULTILABEL = MultilabelKind()


def _known(target: Tensor) -> Tensor:
    return ~target.isnan()


def _has_labels(target: Tensor) -> Tensor:
    return _known(target).any(1)


@dataclass(frozen=True)
class _Loss(BinaryCrossEntropy):
    """The mean over the known labels; `weights` [num_labels] are those of the yes of each."""

    def __call__(self, logits: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
        known = _known(target)
        applies = torch.where(known, target, 0.0).to(logits)
        pairs = None
        if weights is not None:
            pairs = torch.stack([torch.ones_like(weights), weights]).to(logits)
        return mean_where(self.of_logits(logits, applies, pairs), known)


def _decided(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return logits > 0, target > 0.5, _known(target)


def _scored(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return logits, target > 0.5, _known(target)


def _right(logits: Tensor, target: Tensor) -> Tensor:
    known = _known(target)
    return torch.cat([((logits > 0) == (target > 0.5)) & known, known], 1).float()


def multilabel(name: str, num_labels: int, options: ClassLoss = PLAIN_LOSS) -> Task:
    """Binary cross-entropy of each label; targets are 0, 1 and nan, which is unknown: floating, [N,
    num_labels].

    `options` say how the loss treats the labels; its weights are of the yes of each, as torch's
    pos_weight. The loss of an example is the mean over its known labels; one without any counts as
    unlabelled.
    Metrics, each a mean over labels: `auroc` and `average_precision` from a histogram (see
    `scores.auroc`); at a probability of 1/2 `f1` of the ones, where labels neither there nor
    predicted are left out, `accuracy` and `balanced_accuracy`; `log_loss`.
    """

    return Task(
        name=name,
        kind=MULTILABEL,
        out_features=num_labels,
        head=lambda shape: nn.Linear(math.prod(shape), num_labels),
        loss=shared_loss(_Loss, options),
        metrics={
            "auroc": auroc(num_labels, _scored),
            "f1": f1(num_labels, _decided),
            "accuracy": Metric(_right, True, state_size=2 * num_labels, compute=mean_ratio),
            "average_precision": average_precision(num_labels, _scored),
            "balanced_accuracy": balanced_accuracy(num_labels, _decided),
            "log_loss": log_loss(num_labels, _scored),
        },
        decode=lambda logits: (logits > 0).long(),
        # Half-way between the two for what is unknown.
        encode_target=lambda target: torch.where(_known(target), target, 0.5),
        target_shape=(num_labels,),
        label_mask=_has_labels,
    )
