"""One class of several."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raymtl.tasks.scores import mean_ratio
from raymtl.types import Metric, Task


def classification(name: str, num_classes: int, *, balanced: bool = False) -> Task:
    """Cross-entropy over `num_classes`; targets are integers [N]; metric: accuracy in [0, 1].

    With `balanced` also `balanced_accuracy`, the mean over the classes that occur of the share of each that is right.
    """

    def one_hot(target: Tensor) -> Tensor:
        # Not F.one_hot, which looks at the values and so cannot run under vmap.
        return (target[:, None] == torch.arange(num_classes, device=target.device)).float()

    def hits(logits: Tensor, target: Tensor) -> Tensor:
        return (logits.argmax(-1) == target).float()

    def recalls(logits: Tensor, target: Tensor) -> Tensor:
        member = one_hot(target)
        return torch.cat([member * hits(logits, target)[:, None], member], 1)

    metrics = {"accuracy": Metric(hits, True)}
    if balanced:
        metrics["balanced_accuracy"] = Metric(recalls, True, size=2 * num_classes, value=mean_ratio)
    return Task(
        name=name,
        kind="classification",
        out_features=num_classes,
        head=lambda shape: nn.Linear(math.prod(shape), num_classes),
        loss=lambda logits, target: F.cross_entropy(logits, target, reduction="none"),
        metrics=metrics,
        readable=lambda logits: logits.argmax(-1),
        encoded=one_hot,
    )
