"""Yes or no."""

import math

from torch import Tensor, nn
from torch.nn import functional as F

from raymtl.tasks.scores import auroc, f1
from raymtl.types import Metric, Task


def binary(name: str) -> Task:
    """Binary cross-entropy of one logit; targets are 0 and 1, [N], of any type.

    Metrics: `accuracy` at a probability of 1/2, `f1` of the ones, `auroc` from a histogram (see `scores.auroc`).
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
            "accuracy": Metric(lambda logits, target: ((logits[:, 0] > 0) == (target > 0.5)).float(), True),
            "f1": f1(1, decided),
            "auroc": auroc(1, scored),
        },
        readable=lambda logits: (logits[:, 0] > 0).long(),
        encoded=lambda target: target[:, None].float(),
    )
