"""One class of several."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raymtl.tasks.scores import mean_ratio, true_and_false
from raymtl.types import LabelStatistics, Metric, Task, TaskKind


class ClassificationKind(TaskKind):
    """Targets are the numbers of classes."""

    name = "classification"
    label_form = "class"
    has_class_targets = True
    has_class_logits = True
    has_integer_targets = True

    def make(self, name: str, labels: LabelStatistics, size: tuple[int, int]) -> Task:
        return classification(name, labels.num_classes)

    def summarise(self, target: np.ndarray, classes: Sequence[str]) -> dict[str, float]:
        counts = np.bincount(target, minlength=len(classes))
        return dict(zip(classes, counts.tolist(), strict=True))

    def num_classes(self, out_features: int) -> int:
        return out_features

    def class_logits(self, prediction: Tensor) -> Tensor:
        return prediction

    def expected_label(self, value: float, out_features: int) -> str | None:
        if value == int(value) and 0 <= value < out_features:
            return None
        return f"a class from 0 to {out_features - 1}"


CLASSIFICATION = ClassificationKind()


def classification(name: str, num_classes: int, *, few_shot: bool = False) -> Task:
    """Cross-entropy over `num_classes`; targets are integers [N].

    Metrics: `accuracy`; `balanced_accuracy`, the mean over the classes that occur of the share of
    each that is right; `f1`, the mean over the classes that occur or are predicted of 2 TP / (2 TP
    + FP + FN); `log_loss` in nats. With `few_shot` classes are numbered anew in every episode, so
    that `accuracy` and `log_loss` alone mean something.
    """

    def member(target: Tensor) -> Tensor:
        # Not F.one_hot, which looks at the values and so cannot run under vmap.
        return target[:, None] == torch.arange(num_classes, device=target.device)

    def hits(logits: Tensor, target: Tensor) -> Tensor:
        return (logits.argmax(-1) == target).float()

    def recalls(logits: Tensor, target: Tensor) -> Tensor:
        of_class = member(target).float()
        return torch.cat([of_class * hits(logits, target)[:, None], of_class], 1)

    def f1_parts(logits: Tensor, target: Tensor) -> Tensor:
        truth = member(target)
        return true_and_false(member(logits.argmax(-1)), truth, torch.ones_like(truth))

    def entropy(logits: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(logits, target, reduction="none")

    size = 2 * num_classes
    metrics = {"accuracy": Metric(hits, True)}
    if not few_shot:
        metrics["balanced_accuracy"] = Metric(
            recalls, True, state_size=size, compute=mean_ratio, shown=False
        )
        metrics["f1"] = Metric(f1_parts, True, state_size=size, compute=mean_ratio, shown=False)
    metrics["log_loss"] = Metric(entropy, False, shown=False)
    return Task(
        name=name,
        kind=CLASSIFICATION,
        out_features=num_classes,
        head=lambda shape: nn.Linear(math.prod(shape), num_classes),
        loss=entropy,
        metrics=metrics,
        decode=lambda logits: logits.argmax(-1),
        encode_target=lambda target: member(target).float(),
    )
