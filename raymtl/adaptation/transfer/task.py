"""What is to be predicted now: kind, classes and loss of a new task, and the check of its examples."""

from abc import ABC, abstractmethod
from collections import Counter
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor
from torch.nn import functional as F

from raymtl.tasks import classification, regression
from raymtl.types import Spec, Task, UserError

Kind = Literal["classification", "regression"]


class Examples(NamedTuple):
    """Labelled examples of one task: inputs [N, ...] and targets [N]."""

    inputs: Tensor
    targets: Tensor

    def at(self, rows: Tensor) -> "Examples":
        """Those in these rows."""
        return Examples(self.inputs[rows], self.targets[rows])


class Loss(Spec, ABC):
    """One value per example, of a prediction [N, out_features] and a target [N] as the head is to
    give it.
    """

    @property
    @abstractmethod
    def kind(self) -> Kind:
        """The kind of task that it is a loss of."""

    @abstractmethod
    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor:
        """[N]; `target` is the class, or the standardised value."""


class CrossEntropy(Loss):
    """Cross-entropy; `label_smoothing` of the probability is spread over all classes evenly
    (arXiv:1512.00567).
    """

    name: Literal["cross_entropy"] = "cross_entropy"
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @property
    def kind(self) -> Kind:
        return "classification"

    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(
            prediction, target, reduction="none", label_smoothing=self.label_smoothing
        )


class Squared(Loss):
    """Squared error, without the factor 1/2."""

    name: Literal["squared"] = "squared"

    @property
    def kind(self) -> Kind:
        return "regression"

    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor:
        return (prediction.squeeze(-1) - target).square()


class Absolute(Loss):
    """Absolute error."""

    name: Literal["absolute"] = "absolute"

    @property
    def kind(self) -> Kind:
        return "regression"

    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor:
        return (prediction.squeeze(-1) - target).abs()


class Huber(Loss):
    """Half the squared error up to `delta` standard deviations of the target, linear beyond."""

    name: Literal["huber"] = "huber"
    delta: PositiveFloat = 1.0

    @property
    def kind(self) -> Kind:
        return "regression"

    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor:
        return F.huber_loss(prediction.squeeze(-1), target, reduction="none", delta=self.delta)


LossSpec = Annotated[Absolute | CrossEntropy | Huber | Squared, Field(discriminator="name")]


class NewTask(Spec):
    """The new task. Its regression targets are standardised by the mean and spread of the training
    examples.

    `name` is what the examples call it, the column of its labels. Classes are whole numbers from 0
    on, as many as `num_classes` or, if not given, one more than the largest among the examples.
    """

    name: str | None = None
    kind: Kind = "classification"
    num_classes: Annotated[int, Field(ge=2)] | None = None
    loss: LossSpec | None = None
    """`cross_entropy` or `squared` unless given."""

    def check(self, examples: Examples) -> None:
        """Raises UserError, beginning with the dotted key, for examples that no such task can be
        learned from.
        """
        targets = examples.targets
        if self.loss is not None and self.loss.kind != self.kind:
            raise UserError(
                f"task.loss.name: {self.loss.name} is a loss of {self.loss.kind}, got task.kind: "
                f"{self.kind}. Change one of them."
            )
        if not len(targets):
            raise UserError("task.name: expected examples with a label, got none.")
        if not targets.double().isfinite().all():
            raise UserError("task.name: expected finite labels, got others.")
        odd = targets[(targets != targets.round()) | (targets < 0)]
        if self.kind == "classification" and len(odd):
            raise UserError(
                "task.kind: classification takes classes, whole numbers from 0 on, got the label "
                f"{_shown(odd[0])}. For other numbers set task.kind: regression."
            )
        different = len(targets.unique())
        if different < 2:
            if self.kind == "classification":
                what = "classes"
            else:
                what = "values"
            raise UserError(
                f"task.name: expected labels of at least two {what}, got {_shown(targets[0])} "
                "alone."
            )
        if self.kind == "regression":
            return
        classes = self.classes(targets)
        if targets.max() >= classes:
            raise UserError(
                f"task.num_classes: expected more than the largest class {int(targets.max())}, got "
                f"{classes}. Raise it."
            )
        if len(targets) < classes:
            raise UserError(
                f"task.num_classes: expected an example for each of the {classes} classes at "
                f"least, got {len(targets)} examples. Give more, or number the classes from 0 on "
                "without gaps."
            )

    def classes(self, targets: Tensor) -> int:
        """How many classes there are."""
        return self.num_classes or int(targets.max()) + 1

    def build(self, targets: Tensor) -> Task:
        """The task, of the targets [N] that it is trained on."""
        name = self.name or "new"
        if self.kind == "classification":
            task = classification(name, self.classes(targets))
            loss = self.loss or CrossEntropy()
            return task._replace(loss=lambda prediction, target: loss(prediction, target))
        mean, std = _moments(targets)
        if not std:
            raise UserError(
                f"held_out: expected different values among the {len(targets)} examples that are "
                f"trained on, got {_shown(targets[0])} alone. Hold out fewer, or give more "
                "examples."
            )
        return self.standardised(mean, std)

    def standardised(self, mean: float, std: float) -> Task:
        """The regression task of targets with this mean and spread."""
        loss = self.loss or Squared()
        task = regression(self.name or "new", mean, std)

        def of_standardised(prediction: Tensor, target: Tensor) -> Tensor:
            # In float64 first: numbers of 1e9 that differ by 1 are the same in float32.
            return loss(prediction, ((target.double() - mean) / std).to(prediction))

        return task._replace(loss=of_standardised)


def _shown(target: Tensor) -> str:
    """In all of its digits."""
    return f"{target.item():.15g}"


def _moments(targets: Tensor) -> tuple[float, float]:
    """Mean and standard deviation; of scaled numbers, for the squares of their own could be too
    small or large.
    """
    values = targets.double()
    scale = float(values.abs().max()) or 1.0
    scaled = values / scale
    return scale * float(scaled.mean()), scale * float(scaled.std(correction=0))


def split(examples: Examples, held_out: float, seed: int, kind: Kind) -> tuple[Examples, Examples]:
    """Examples to train on, and the share to select by, which leaves an example of every class to
    train on.

    Nothing is held out where `held_out` is 0. Raises UserError where the share comes to less than
    two examples.
    """
    number = len(examples.targets)
    wanted = round(held_out * number)
    left = Counter(examples.targets.tolist())
    chosen: list[int] = []
    for row in torch.randperm(number, generator=torch.Generator().manual_seed(seed)).tolist():
        label = examples.targets[row].item()
        if len(chosen) < wanted and (kind == "regression" or left[label] > 1):
            chosen.append(row)
            left[label] -= 1
    each_once = kind == "classification" and number > 2 and max(left.values()) == 1 and not chosen
    if held_out and (len(chosen) < 2 or len(chosen) == number):
        raise UserError(
            "held_out: expected two examples at least to select by, and some to train on, got "
            f"{len(chosen)} of {number} at "
            f"{held_out:g}{', with one of each class kept' if kind == 'classification' else ''}. "
            "Change it, give more examples, or set held_out: 0 to take the last step without a "
            f"selection.{' For labels that are numbers set task.kind: regression.' if each_once else ''}"
        )
    kept = torch.ones(number, dtype=torch.bool)
    kept[chosen] = False
    return examples.at(kept.nonzero().flatten()), examples.at((~kept).nonzero().flatten())
