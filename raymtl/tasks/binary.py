"""Yes or no."""

import math

from torch import Tensor, nn
from torch.nn import functional as F

from raymtl.tasks.scores import auroc, average_precision, balanced_accuracy, f1, log_loss
from raymtl.types import Metric, Task


def binary(name: str) -> Task:
    """Binary cross-entropy of one logit; targets are 0 and 1, [N], of any type.

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
        kind="binary",
        out_features=1,
        head=lambda shape: nn.Linear(math.prod(shape), 1),
        loss=lambda logits, target: F.binary_cross_entropy_with_logits(
            logits[:, 0], target.to(logits), reduction="none"
        ),
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
