"""A new task: its kind, classes and loss, and the check of its examples."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from raymtl.adaptation.transfer.losses import (
    Absolute,
    CrossEntropy,
    Huber,
    Loss,
    LossSpec,
    Squared,
)
from raymtl.tasks import classification, regression
from raymtl.tasks.classification import CLASSIFICATION
from raymtl.tasks.regression import REGRESSION
from raymtl.types import Spec, Task, TaskKind, UserError


class Examples(NamedTuple):
    """Labelled examples of one task: inputs [N, ...] and targets [N]."""

    inputs: Tensor
    targets: Tensor

    def at(self, rows: Tensor) -> "Examples":
        """Those in these rows."""
        return Examples(self.inputs[rows], self.targets[rows])


class NewTaskKind(ABC):
    """How a new task of one kind is checked, built and taught. `NEW_TASK_KINDS` lists them all."""

    kind: ClassVar[TaskKind]
    losses: ClassVar[tuple[type[Loss], ...]]
    """Those that fit; the first is the one that is taken unless another is given."""
    values: ClassVar[str]
    """What labels are, in the plural."""
    keeps_each_class: ClassVar[bool]
    """Whether every label must stay among the examples that are trained on."""

    @abstractmethod
    def check(self, new: "NewTask", targets: Tensor) -> None:
        """Raises UserError, beginning with the dotted key, for finite labels that do not fit."""

    @abstractmethod
    def typed(self, targets: Tensor) -> Tensor:
        """Labels, float64, in the type that the task takes, where they are such."""

    @abstractmethod
    def build(self, new: "NewTask", every: Tensor, trained_on: Tensor) -> Task:
        """The task, of all labels and of those that it is trained on."""

    @abstractmethod
    def describe(self, task: Task, classes: tuple[str, ...]) -> dict[str, Any]:
        """What `restore` needs, as JSON."""

    @abstractmethod
    def restore(self, new: "NewTask", described: Mapping[str, Any]) -> Task:
        """The task that `describe` described."""

    @abstractmethod
    def accepts(self, trained: Task) -> bool:
        """Whether a trained task of the same name can be the new one."""

    def num_outputs(self, trained: Task) -> int:
        """How many outputs a head of the new task has if it is this trained one."""
        return trained.out_features

    @abstractmethod
    def completed(self, new: "NewTask", trained: Task) -> "NewTask":
        """With what follows from the new task being this trained one."""

    @abstractmethod
    def taught(self, trained: Task, prediction: Tensor) -> Tensor:
        """What a trained model says of the task: logits [N, classes], or values [N] in the target's
        own unit.
        """

    @abstractmethod
    def as_prediction(self, task: Task, taught: Tensor) -> Tensor:
        """That as the head would give it, [N, out_features]."""


class NewClassification(NewTaskKind):
    """Labels are classes, whole numbers from 0 on."""

    kind = CLASSIFICATION
    losses = (CrossEntropy,)
    values = "classes"
    keeps_each_class = True

    def check(self, new: "NewTask", targets: Tensor) -> None:
        odd = targets[(targets != targets.round()) | (targets < 0)]
        if len(odd):
            raise UserError(
                "task.kind: classification takes classes, whole numbers from 0 on, got the label "
                f"{_shown(odd[0])}. For other numbers set task.kind: regression."
            )
        _check_different(targets, self.values)
        classes = new.count_classes(targets)
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

    def typed(self, targets: Tensor) -> Tensor:
        if bool((targets == targets.round()).all()):
            return targets.long()
        return targets

    def build(self, new: "NewTask", every: Tensor, trained_on: Tensor) -> Task:
        return self._task(new, new.count_classes(every))

    def _task(self, new: "NewTask", num_classes: int) -> Task:
        loss = new.loss or CrossEntropy()
        task = classification(new.task_name, num_classes)
        return task._replace(loss=lambda prediction, target: loss(prediction, target))

    def describe(self, task: Task, classes: tuple[str, ...]) -> dict[str, Any]:
        return {"num_classes": task.out_features, "classes": list(classes)}

    def restore(self, new: "NewTask", described: Mapping[str, Any]) -> Task:
        return self._task(new, described["num_classes"])

    def accepts(self, trained: Task) -> bool:
        return trained.kind.has_class_targets

    def num_outputs(self, trained: Task) -> int:
        return trained.num_classes

    def completed(self, new: "NewTask", trained: Task) -> "NewTask":
        if new.num_classes is not None:
            return new
        return new.model_copy(update={"num_classes": trained.num_classes})

    def taught(self, trained: Task, prediction: Tensor) -> Tensor:
        return trained.kind.class_logits(prediction)

    def as_prediction(self, task: Task, taught: Tensor) -> Tensor:
        return taught


class NewRegression(NewTaskKind):
    """Labels are numbers, standardised by those that are trained on."""

    kind = REGRESSION
    losses = (Squared, Absolute, Huber)
    values = "values"
    keeps_each_class = False

    def check(self, new: "NewTask", targets: Tensor) -> None:
        _check_different(targets, self.values)

    def typed(self, targets: Tensor) -> Tensor:
        return targets

    def build(self, new: "NewTask", every: Tensor, trained_on: Tensor) -> Task:
        mean, std = _moments(trained_on)
        if not std:
            raise UserError(
                f"held_out: expected different values among the {len(trained_on)} examples that "
                f"are trained on, got {_shown(trained_on[0])} alone. Hold out fewer, or give more "
                "examples."
            )
        return self._task(new, mean, std)

    def _task(self, new: "NewTask", mean: float, std: float) -> Task:
        loss = new.loss or Squared()

        def of_standardised(prediction: Tensor, target: Tensor) -> Tensor:
            # In float64 first: numbers of 1e9 that differ by 1 are the same in float32.
            return loss(prediction, ((target.double() - mean) / std).to(prediction))

        return regression(new.task_name, mean, std)._replace(loss=of_standardised)

    def describe(self, task: Task, classes: tuple[str, ...]) -> dict[str, Any]:
        zero, one = (
            float(task.decode(torch.tensor([[value]], dtype=torch.float64))) for value in (0.0, 1.0)
        )
        return {"num_classes": None, "mean": zero, "std": one - zero}

    def restore(self, new: "NewTask", described: Mapping[str, Any]) -> Task:
        return self._task(new, described["mean"], described["std"])

    def accepts(self, trained: Task) -> bool:
        return trained.kind.predicts_numbers

    def completed(self, new: "NewTask", trained: Task) -> "NewTask":
        return new

    def taught(self, trained: Task, prediction: Tensor) -> Tensor:
        return trained.decode(prediction.double())

    def as_prediction(self, task: Task, taught: Tensor) -> Tensor:
        assert task.encode_target is not None
        return task.encode_target(taught.flatten())


NEW_TASK_KINDS: tuple[NewTaskKind, ...] = (NewClassification(), NewRegression())
_BY_NAME = {kind.kind.name: kind for kind in NEW_TASK_KINDS}

if TYPE_CHECKING:
    NewTaskKindName = str
else:
    NewTaskKindName = Literal[tuple(_BY_NAME)]


class NewTask(Spec):
    """The new task. Its regression targets are standardised by the mean and spread of the training
    examples.

    `name` is what the examples call it, the column of its labels. Classes are whole numbers from 0
    on, as many as `num_classes` or, if not given, one more than the largest among the examples.
    """

    name: str | None = None
    kind: NewTaskKindName = "classification"
    num_classes: Annotated[int, Field(ge=2)] | None = None
    loss: LossSpec | None = None
    """`cross_entropy` or `squared` unless given."""

    @property
    def task_kind(self) -> NewTaskKind:
        """How tasks of its kind are learned."""
        return _BY_NAME[self.kind]

    @property
    def task_name(self) -> str:
        """Its name, or `new`."""
        return self.name or "new"

    def count_classes(self, targets: Tensor) -> int:
        """How many classes there are."""
        return self.num_classes or int(targets.max()) + 1

    def check(self, examples: Examples) -> None:
        """Raises UserError, beginning with the dotted key, for examples that no such task can be
        learned from.
        """
        targets = examples.targets
        if self.loss is not None and not isinstance(self.loss, self.task_kind.losses):
            own = next(
                name for name, kind in _BY_NAME.items() if isinstance(self.loss, kind.losses)
            )
            raise UserError(
                f"task.loss.name: {self.loss.name} is a loss of {own}, got task.kind: {self.kind}. "
                "Change one of them."
            )
        if not len(targets):
            raise UserError("task.name: expected examples with a label, got none.")
        if not targets.double().isfinite().all():
            raise UserError("task.name: expected finite labels, got others.")
        self.task_kind.check(self, targets)


def _check_different(targets: Tensor, values: str) -> None:
    if len(targets.unique()) < 2:
        raise UserError(
            f"task.name: expected labels of at least two {values}, got {_shown(targets[0])} alone."
        )


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
