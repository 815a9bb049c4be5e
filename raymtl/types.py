"""The shared vocabulary: Spec, Task, Batch, Episode, Params. Needs torch and pydantic alone."""

import datetime
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict
from torch import Tensor, nn

Params = Mapping[str, Tensor]
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
    """What a text of a configuration must match as a whole, with the words that say so to its user."""

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"expected {words}, got {text!r}")
        return text

    return AfterValidator(check)


def as_written(value: Any) -> Any:
    """A whole number as the text that it is written as; raises ValueError for what YAML may write
    in several ways.
    """
    if isinstance(value, bool):
        if value:
            words = "yes and on"
        else:
            words = "no and off"
        raise ValueError(
            f"expected a text, got {value}, as which YAML reads {words}: put it in quotes"
        )
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float | datetime.date):
        if isinstance(value, float):
            what = "a number"
        else:
            what = "a date"
        raise ValueError(
            f"expected a text, got {value}, which YAML reads as {what}: put it in quotes"
        )
    return value


WRITTEN = BeforeValidator(as_written)
"""Of texts that a user may write as numbers: names of columns, what stands for nothing."""


Kind = Literal[
    "classification",
    "binary",
    "multilabel",
    "regression",
    "segmentation",
    "depth",
    "normals",
    "detection",
]


def mean_over_examples(sums: Tensor, count: Tensor) -> Tensor:
    """sums [..., 1] / count [...] -> [...]."""
    return sums[..., 0] / count


class Counts(NamedTuple):
    """What each of N examples adds to a long row of numbers: `weights` [N, M] at `places` [N, M]."""

    places: Tensor
    weights: Tensor


class Metric(NamedTuple):
    """A score made of numbers that add up, so that it is exact over masks, episodes and workers.

    `update` takes a prediction [N, ...] and a target [N, ...] and returns [N], or [N, state_size],
    or `Counts` of places below `state_size`; `compute` makes the score, [...], of their sums over examples,
    [..., state_size], and of the number of examples, [...]. It is nan where these say nothing, such as
    where there are none. Without a `compute` the score is the mean over examples.
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


class Task(NamedTuple):
    """A kind of output: how to predict it from features, and how to judge the prediction.

    `head` builds the module [N, F] -> [N, out_features, ...] for features of one shape, of which
    each example's are given flattened: F is the product of the shape. `loss` returns one value per
    example, [N]. The first metric is the one that the task is chosen by.
    """

    name: str
    kind: Kind
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
    dense: bool = False
    """Whether the head needs features that are maps, [channels, height, width]."""
    target_shape: tuple[int, ...] = ()
    """Of one example's target, of the least size where it varies: what stands in for a label that
    is masked.
    """
    quadratic: bool = False
    """Whether the loss is quadratic in the prediction, so that one Newton step from anywhere finds
    its least.
    """


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


def prefixed(params: Params, prefix: str) -> dict[str, Tensor]:
    """The same entries named with `prefix.` before them."""
    return {f"{prefix}.{name}": value for name, value in params.items()}
