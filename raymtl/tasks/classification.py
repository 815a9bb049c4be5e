"""One class of several."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raymtl.tasks.class_loss import CrossEntropy, shared_loss
from raymtl.tasks.scores import mean_ratio, true_and_false
from raymtl.types import PLAIN_LOSS, ClassLoss, LabelStatistics, Metric, Task, TaskKind


class ClassificationKind(TaskKind):
    """Targets are the numbers of classes."""

    name = "classification"
    label_form = "class"
    has_class_targets = True
    has_class_logits = True
    has_integer_targets = True
    takes_class_loss = True

    def make(self, name: str, labels: LabelStatistics, size: tuple[int, int]) -> Task:
        return classification(name, labels.num_classes, options=labels.class_loss)

    def summarise(self, target: np.ndarray, classes: Sequence[str]) -> dict[str, float]:
        counts = np.bincount(target, minlength=len(classes))
        return dict(zip(classes, counts.tolist(), strict=True))

    def num_classes(self, out_features: int) -> int:
        return out_features

    def mixable(self, target: Tensor, out_features: int) -> Tensor:
        member = target[..., None] == torch.arange(out_features, device=target.device)
        return member.to(torch.get_default_dtype())

    def class_logits(self, prediction: Tensor) -> Tensor:
        return prediction

    def expected_label(self, value: float, out_features: int) -> str | None:
        if value == int(value) and 0 <= value < out_features:
            return None
        return f"a class from 0 to {out_features - 1}"


CLASSIFICATION = ClassificationKind()


def _one_hot(target: Tensor, num_classes: int) -> Tensor:
    """[N] -> [N, num_classes] bool."""
    # Not F.one_hot, which looks at the values and so cannot run under vmap.
    return target[:, None] == torch.arange(num_classes, device=target.device)


def _hits(logits: Tensor, target: Tensor) -> Tensor:
    return (logits.argmax(-1) == target).float()


def _entropy(logits: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(logits, target, reduction="none")


def _class_metrics(num_classes: int) -> dict[str, Metric]:
    """The metrics that are means over classes."""

    def recalls(logits: Tensor, target: Tensor) -> Tensor:
        of_class = _one_hot(target, num_classes).float()
        return torch.cat([of_class * _hits(logits, target)[:, None], of_class], 1)

    def f1_parts(logits: Tensor, target: Tensor) -> Tensor:
        truth = _one_hot(target, num_classes)
        predicted = _one_hot(logits.argmax(-1), num_classes)
        return true_and_false(predicted, truth, torch.ones_like(truth))

    size = 2 * num_classes
    return {
        "balanced_accuracy": Metric(
            recalls, True, state_size=size, compute=mean_ratio, shown=False
        ),
        "f1": Metric(f1_parts, True, state_size=size, compute=mean_ratio, shown=False),
    }


def classification(
    name: str, num_classes: int, *, few_shot: bool = False, options: ClassLoss = PLAIN_LOSS
) -> Task:
    """Cross-entropy over `num_classes`; targets are integers [N]. The loss also takes
    probabilities of the classes, [N, num_classes]; `options` say how it treats the classes
    (`class_loss.CrossEntropy`).

    Metrics: `accuracy`; `balanced_accuracy`, the mean over the classes that occur of the share of
    each that is right; `f1`, the mean over the classes that occur or are predicted of 2 TP / (2 TP
    + FP + FN); `log_loss` in nats. With `few_shot` classes are numbered anew in every episode, so
    that `accuracy` and `log_loss` alone mean something.
    """

    metrics = {"accuracy": Metric(_hits, True)}
    if not few_shot:
        metrics |= _class_metrics(num_classes)
    metrics["log_loss"] = Metric(_entropy, False, shown=False)
    return Task(
        name=name,
        kind=CLASSIFICATION,
        out_features=num_classes,
        head=lambda shape: nn.Linear(math.prod(shape), num_classes),
        loss=shared_loss(CrossEntropy, options),
        metrics=metrics,
        decode=lambda logits: logits.argmax(-1),
        encode_target=lambda target: _one_hot(target, num_classes).float(),
    )
