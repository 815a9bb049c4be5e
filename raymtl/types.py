"""The shared vocabulary: Spec, Task, TaskKind, Batch, Episode, Params. Imports pydantic alone, for
the sake of commands that end before they need torch.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

Value = TypeVar("Value")
Params = Mapping[str, "Tensor"]
"""One flat mapping of everything that is learned; the prefixes are `model.`, `weighting.` and
`learner.`.
"""


class UserError(Exception):
    """A mistake of the user's: one sentence that says what was expected, what was got and what to
    do.
    """


class DivergedError(Exception):
    """A loss that is no longer a finite number; names the task and the outer step."""


class Spec(BaseModel):
    """A part of the configuration, which is also the hyperparameters of the algorithm it names."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True
    )


def matching(pattern: str, words: str) -> AfterValidator:
    """A pattern that a whole text of a configuration must match, with words for it in errors."""

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"expected {words}, got {text!r}")
        return text

    return AfterValidator(check)


def mean_over_examples(sums: Tensor, count: Tensor) -> Tensor:
    """sums [..., 1] / count [...] -> [...]."""
    return sums[..., 0] / count


class Counts(NamedTuple):
    """What N examples add to a long row of numbers: `weights` [N, M] at `places` [N, M]."""

    places: Tensor
    weights: Tensor


class Metric(NamedTuple):
    """A score made of numbers that add up, so that it is exact over masks, episodes and workers.

    `update` takes a prediction [N, ...] and a target [N, ...] and returns [N], or [N, state_size],
    or `Counts` of places below `state_size`. `compute` makes the score, [...], of their sums over
    examples, [..., state_size], and of the number of examples, [...]. It is nan where these say
    nothing, such as where there are none. By default the score is the mean over examples.
    """

    update: Callable[[Tensor, Tensor], Tensor | Counts]
    higher_is_better: bool
    ratio_scale: bool = True
    """Whether a relative change of it belongs into the deltas: its zero means nothing at all
    (accuracy, errors), and no other metric of the task says the same in other units.
    """
    state_size: int = 1
    compute: Callable[[Tensor, Tensor], Tensor] = mean_over_examples
    shown: bool = True
    """Whether tables show it even where it is not the metric that the task is chosen by."""


LabelForm = Literal["class", "set", "number", "map", "boxes"]
"""What one label is: one of several classes, some of several labels, a number or a vector of
numbers, a value for every pixel, or boxes.
"""


class ClassLoss(NamedTuple):
    """How the loss of a task with classes or sets of labels treats them; plain by default."""

    weights: tuple[float, ...] = ()
    """Of the classes, or of the yes of each of several labels."""
    label_smoothing: float = 0.0
    focal: float = 0.0
    """The exponent of the focal loss."""


PLAIN_LOSS = ClassLoss()


class LabelStatistics(NamedTuple):
    """What a user's labels showed and what was asked of them, from which `TaskKind.make` builds."""

    num_classes: int = 0
    means: tuple[float, ...] = ()
    stds: tuple[float, ...] = ()
    """Of the components of a number or vector, or of all pixels of maps."""
    is_vector: bool = False
    loss: Literal["squared", "absolute", "huber"] | None = None
    stride: int | None = None
    class_loss: ClassLoss = PLAIN_LOSS


class TaskKind(ABC):
    """What all tasks of one kind have in common. Each kind is one file in raymtl/tasks/, and
    `raymtl.tasks.KINDS` lists them all. `raymtl.register` brings in one of your own.
    """

    name: ClassVar[str]
    """As configurations and run folders write it."""
    label_form: ClassVar[LabelForm]
    is_dense: ClassVar[bool] = False
    """Whether heads need features that are maps, [channels, height, width]."""
    is_map: ClassVar[bool] = False
    """Whether a target has a value for every pixel; then the kind is a `raymtl.tasks.MapKind`."""
    has_boxes: ClassVar[bool] = False
    has_class_targets: ClassVar[bool] = False
    """Whether a target is the number of one class, [N]."""
    has_class_logits: ClassVar[bool] = False
    """Whether, besides, a prediction has one logit for every class, [N, num_classes]."""
    has_integer_targets: ClassVar[bool] = False
    has_label_sets: ClassVar[bool] = False
    """Whether a target says of each of several labels if it applies, [N, num_labels]."""
    predicts_numbers: ClassVar[bool] = False
    """Whether a target is a number [N] or a vector [N, D] in a unit of its own."""
    has_thresholds: ClassVar[bool] = False
    """Whether a prediction has one logit for each yes or no, [N, num_labels], above 0 for yes."""
    takes_class_loss: ClassVar[bool] = False
    """Whether the loss can weigh classes, smooth labels and leave easy examples to themselves."""
    max_classes: ClassVar[int | None] = None
    classes_hint: ClassVar[str] = ""
    """How to make it a classification, where that is possible: behind errors that ask for one."""

    def __str__(self) -> str:
        return self.name

    @property
    def described(self) -> str:
        """What a task of the kind is, in a sentence: `a regression`."""
        return f"a {self.name}"

    @abstractmethod
    def make(self, name: str, labels: LabelStatistics, size: tuple[int, int]) -> Task:
        """The task of labels that look so; `size` is the height and width of the inputs, where
        these are images.
        """

    @abstractmethod
    def summarise(self, target: np.ndarray, classes: Sequence[str]) -> dict[str, float]:
        """What labels [N, ...] that are known hold: examples of each class, or mean, std, min and
        max.
        """

    def num_classes(self, out_features: int) -> int:
        """How many classes or labels such a task tells apart."""
        return 2

    def positive_class(self, classes: Sequence[str]) -> str | None:
        """The class that counts as yes, where there is such."""
        return None

    def class_logits(self, prediction: Tensor) -> Tensor:
        """A prediction as one logit for every class, [N, num_classes], of a kind with class
        targets.
        """
        raise TypeError(f"{self.name} has no classes")

    def probabilities(self, prediction: Tensor) -> Tensor:
        """The probability of every class, [N, num_classes], of a kind with class targets."""
        return self.class_logits(prediction).softmax(-1)

    def mixable(self, target: Tensor, out_features: int) -> Tensor:
        """Targets [..., N] of examples as numbers whose weighted means are targets too."""
        return target

    def expected_label(self, value: float, out_features: int) -> str | None:
        """What a label should be instead, in words, where this number cannot be one."""
        return None


class Task(NamedTuple):
    """A kind of output: how to predict it from features, and how to judge the prediction.

    `head` builds the module [N, F] -> [N, out_features, ...] for features of one shape, of which
    each example's are given flattened: F is the product of the shape. `loss` returns one value per
    example, [N]. The first metric is the one that the task is chosen by.
    """

    name: str
    kind: TaskKind
    out_features: int
    head: Callable[[tuple[int, ...]], nn.Module]
    loss: Callable[[Tensor, Tensor], Tensor]
    metrics: Mapping[str, Metric]
    decode: Callable[[Tensor], Tensor]
    """Prediction [N, ...] -> what a person reads, [N, ...]: the class, or the value in the target's
    own unit.
    """
    encode_target: Callable[[Tensor], Tensor] | None = None
    """Target [N, ...] -> [N, out_features], for learners that read labels: one-hot, or the
    standardised value.
    """
    label_mask: Callable[[Tensor], Tensor] | None = None
    """Target [N, ...] -> whether it says anything at all, [N], where a target may be missing in all
    its parts.

    An example without is one whose label is masked.
    """
    target_shape: tuple[int, ...] = ()
    """Of one example's target, of the least size where it varies: what stands in for a label that
    is masked.
    """
    quadratic: bool = False
    """Whether the loss is quadratic in the prediction, so that one Newton step from anywhere finds
    its least.
    """
    threshold_metric: Literal["f1", "balanced_accuracy", "accuracy"] | None = None
    """The score by which thresholds are chosen on validation when the training has ended."""
    thresholds: tuple[float | None, ...] = ()
    """The logits above which decisions are a yes, one for each label; without them all are 0. None
    stands for 0 where validation could not choose one.
    """

    @property
    def is_dense(self) -> bool:
        """Whether the head needs features that are maps, [channels, height, width]."""
        return self.kind.is_dense

    @property
    def num_classes(self) -> int:
        """How many classes or labels the task tells apart."""
        return self.kind.num_classes(self.out_features)

    def missing_targets(self, number: int) -> Tensor:
        """Targets [number, ...] that stand in for labels that are all masked."""
        import torch

        if self.kind.has_integer_targets:
            return torch.zeros(number, *self.target_shape, dtype=torch.int64)
        return torch.zeros(number, *self.target_shape)


class Batch(NamedTuple):
    """Examples with the labels of several tasks.

    `inputs` is one tensor [N, ...] that all tasks share, or one [N_t, ...] per task. `masks[t]` [N]
    is False where the label of task t is missing; a task without a mask has all its labels, but for
    what `Task.label_mask` says.
    """

    inputs: Tensor | Mapping[str, Tensor]
    targets: Mapping[str, Tensor]
    masks: Mapping[str, Tensor]


class Episode(NamedTuple):
    """What a task batch consists of: adapt on `support`, judge on `query`. Stacked over a leading
    axis [E, ...].

    With inputs that all tasks share it has a target of each of them, masked where it is missing.
    With inputs of their own it may lack tasks: they are then in neither the inputs nor the targets
    of support and query.
    """

    support: Batch
    query: Batch


MetaBatch = Episode | Sequence[Episode]
"""A stack of episodes [E, ...], or several stacks where episodes differ in their tasks or their
numbers of examples.
"""


def select(params: Params, prefix: str) -> dict[str, Tensor]:
    """The entries under `prefix.`, named without it."""
    start = f"{prefix}."
    return {name[len(start) :]: value for name, value in params.items() if name.startswith(start)}


def matches_last(name: str, patterns: Sequence[str]) -> bool:
    """Whether the last of the `patterns` that matches the name includes it; one that begins with
    `-` excludes it.
    """
    last = next((p for p in reversed(patterns) if fnmatchcase(name, p.removeprefix("-"))), "-")
    return not last.startswith("-")


def prefixed(params: Mapping[str, Value], prefix: str) -> dict[str, Value]:
    """The same entries named with `prefix.` before them."""
    return {f"{prefix}.{name}": value for name, value in params.items()}
