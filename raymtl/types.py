"""The shared vocabulary: Spec, Task, Batch, Episode, Params. Needs torch and pydantic alone."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

Params = Mapping[str, Tensor]
"""One flat mapping of everything that is learned; the prefixes are `model.`, `weighting.` and `learner.`."""


class UserError(Exception):
    """A mistake of the user's: one sentence that says what was expected, what was got and what to do."""


class DivergedError(Exception):
    """A loss that is no longer a finite number; names the task and the outer step."""


class Spec(BaseModel):
    """A part of the configuration, which is also the hyperparameters of the algorithm it names."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)


class Metric(NamedTuple):
    """A score that is a mean over examples, so that sums and counts add up over masks, episodes and workers.

    `per_example` takes a prediction [N, ...] and a target [N] and returns [N].
    """

    per_example: Callable[[Tensor, Tensor], Tensor]
    higher_is_better: bool
    ratio_scale: bool = True
    """Whether its zero means nothing at all (accuracy, errors), so that a relative change of it says something."""


class Task(NamedTuple):
    """A kind of output: how to predict it from features, and how to judge the prediction.

    `head` builds the module [N, in_features] -> [N, out_features]; `loss` returns one value per example, [N].
    The first metric is the one that the task is chosen by.
    """

    name: str
    kind: Literal["classification", "regression"]
    out_features: int
    head: Callable[[int], nn.Module]
    loss: Callable[[Tensor, Tensor], Tensor]
    metrics: Mapping[str, Metric]
    readable: Callable[[Tensor], Tensor]
    """Prediction [N, out_features] -> what a person reads, [N]: the class, or the value in the target's own unit."""
    encoded: Callable[[Tensor], Tensor] | None = None
    """Target [N] -> [N, out_features], for learners that read labels: one-hot, or the standardised value."""


class Batch(NamedTuple):
    """Examples with the labels of several tasks.

    `inputs` is one tensor [N, ...] that all tasks share, or one [N_t, ...] per task. `masks[t]` [N] is False where
    the label of task t is missing; a task without a mask has all its labels.
    """

    inputs: Tensor | Mapping[str, Tensor]
    targets: Mapping[str, Tensor]
    masks: Mapping[str, Tensor]


class Episode(NamedTuple):
    """What a task batch consists of: adapt on `support`, judge on `query`. Stacked over a leading axis [E, ...].

    With inputs that all tasks share it has a target of each of them, masked where it is missing. With inputs of their
    own it may lack tasks: they are then in neither the inputs nor the targets of support and query.
    """

    support: Batch
    query: Batch


MetaBatch = Episode | Sequence[Episode]
"""A stack of episodes [E, ...], or several stacks where episodes differ in their tasks or their numbers of examples."""


def select(params: Params, prefix: str) -> dict[str, Tensor]:
    """The entries under `prefix.`, named without it."""
    start = f"{prefix}."
    return {name[len(start) :]: value for name, value in params.items() if name.startswith(start)}


def prefixed(params: Params, prefix: str) -> dict[str, Tensor]:
    """The same entries named with `prefix.` before them."""
    return {f"{prefix}.{name}": value for name, value in params.items()}
