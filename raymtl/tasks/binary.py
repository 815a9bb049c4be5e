"""Yes or no."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from raymtl.tasks.class_loss import BinaryCrossEntropy, shared_loss
from raymtl.tasks.scores import auroc, average_precision, balanced_accuracy, f1, log_loss
from raymtl.types import PLAIN_LOSS, ClassLoss, LabelStatistics, Metric, Task, TaskKind


class BinaryKind(TaskKind):
    """Targets are 0 and 1, the first class and the second."""

    name = "binary"
    label_form = "class"
    has_class_targets = True
    has_thresholds = True
    takes_class_loss = True
    max_classes = 2
    classes_hint = " (its `kind: classification` makes it one of two classes)"

    @property
    def described(self) -> str:
        return "binary"

    def make(self, name: str, labels: LabelStatistics, size: tuple[int, int]) -> Task:
        return binary(name, labels.class_loss)

    def summarise(self, target: np.ndarray, classes: Sequence[str]) -> dict[str, float]:
        counts = np.bincount(target, minlength=len(classes))
        return dict(zip(classes, counts.tolist(), strict=True))

    def positive_class(self, classes: Sequence[str]) -> str | None:
        return classes[1]

    def class_logits(self, prediction: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(prediction), prediction], 1)

    def probabilities(self, prediction: Tensor) -> Tensor:
        # Not a softmax: both stay exact where one of them is almost 1.
        return torch.cat([(-prediction).sigmoid(), prediction.sigmoid()], 1)

    def mixable(self, target: Tensor, out_features: int) -> Tensor:
        return target.to(torch.get_default_dtype())

    def expected_label(self, value: float, out_features: int) -> str | None:
        if value in (0, 1):
            return None
        return "0 or 1"


BINARY = BinaryKind()


def binary(name: str, options: ClassLoss = PLAIN_LOSS) -> Task:
    """Binary cross-entropy of one logit; targets are 0 and 1, [N], of any type. `options` say
    how it treats the two (`class_loss.BinaryCrossEntropy`).

    Metrics: `auroc` and `average_precision` from a histogram (see `scores.auroc`); at a probability
    of 1/2 `f1` of the ones, `accuracy` and `balanced_accuracy`, the mean of the shares of ones and
    of zeros that are right; `log_loss`.
    """

    def decided(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        truth = target[:, None] > 0.5
        return logits > 0, truth, truth | ~truth

    def scored(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        _, truth, known = decided(logits, target)
        return logits, truth, known

    return Task(
        name=name,
        kind=BINARY,
        out_features=1,
        head=lambda shape: nn.Linear(math.prod(shape), 1),
        loss=shared_loss(BinaryCrossEntropy, options),
        metrics={
            "auroc": auroc(1, scored),
            "f1": f1(1, decided),
            "accuracy": Metric(
                lambda logits, target: ((logits[:, 0] > 0) == (target > 0.5)).float(), True
            ),
            "average_precision": average_precision(1, scored),
            "balanced_accuracy": balanced_accuracy(1, decided),
            "log_loss": log_loss(1, scored),
        },
        decode=lambda logits: (logits[:, 0] > 0).long(),
        encode_target=lambda target: target[:, None].float(),
    )
