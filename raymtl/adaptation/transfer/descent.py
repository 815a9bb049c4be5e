"""Gradient descent on a few examples, with quadratic anchors taken by their proximal step, selected
by validation.

theta' = theta - A m, theta <- argmin over x of lambda |x - anchor|^2 + 1/2 (x - theta')' A^-1 (x -
theta'), where A is the optimiser's step of each coordinate and m its gradient: (theta' + 2 A lambda
anchor) / (1 + 2 A lambda).
"""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from raymtl.types import DivergedError, Spec

ADAM_BETA2, ADAM_EPS = 0.999, 1e-8

Look = Callable[[Mapping[str, float | None]], None]
"""Takes the row of every step."""


class Optimiser(Spec):
    """The descent: `steps` of `batch_size` examples at most, looked at every `look_every` steps."""

    name: Literal["adam", "sgd"] = "adam"
    lr: PositiveFloat = 0.003
    schedule: Literal["constant", "cosine"] = "cosine"
    """`cosine` lets the rate fall to 0 at the last step."""
    steps: PositiveInt = 300
    batch_size: PositiveInt = 64
    look_every: PositiveInt = 10
    patience: PositiveInt | None = 10
    """The descent ends early after so many looks in a row that were not better than the best one
    before; with null it makes all `steps`. It needs held-out examples.
    """
    seed: NonNegativeInt = 0
    """Of the batches, of what is held out, and of what is new in the network."""


class Anchor(NamedTuple):
    """strength |value - at|^2."""

    at: Tensor
    strength: float

    def penalty(self, value: Tensor) -> Tensor:
        """The term of the objective; its gradient is 2 strength (value - at)."""
        return self.strength * (value - self.at).square().sum()


class Course(NamedTuple):
    """How a descent went: a row each step, and the step whose parameters the module has."""

    rows: list[dict[str, float | None]]
    step: int


class Objective(NamedTuple):
    """What a descent lowers, and by what its step is selected."""

    loss: Callable[[Tensor], Tensor]
    """Of rows [n] of the examples, [n]."""
    num_examples: int
    anchors: Mapping[str, Anchor]
    """Of parameters by their names in the module."""
    validate: Callable[[], float] | None = None
    """The loss of other examples; without it the last step is taken."""

    def penalty(self, values: Mapping[str, Tensor]) -> float:
        """The sum of the anchors' penalties."""
        penalties = (anchor.penalty(values[name].detach()) for name, anchor in self.anchors.items())
        return float(sum(float(penalty) for penalty in penalties))


class _Best:
    """The parameters of the look with the lowest validation loss, the first of equals."""

    def __init__(self, values: Mapping[str, Tensor], last_step: int) -> None:
        self.values = values
        self.loss, self.step = math.inf, last_step
        self._keep()

    def _keep(self) -> None:
        self._best = {name: value.detach().clone() for name, value in self.values.items()}

    def look(self, loss: float, step: int) -> None:
        """Keeps the parameters where they are better than before."""
        if loss < self.loss:
            self.loss, self.step = loss, step
            self._keep()

    @torch.no_grad()
    def restore(self) -> None:
        """Gives the parameters their best values."""
        for name, value in self.values.items():
            value.copy_(self._best[name])


def descend(settings: Optimiser, module: nn.Module, objective: Objective, look: Look) -> Course:
    """Trains the parameters of `module` that have a gradient to lower the objective.

    With `validate`, the parameters of the look with the lowest validation loss stand, the first of
    equals; without, those of the last step. Raises DivergedError where a loss is not finite.
    """
    values = {name: value for name, value in module.named_parameters() if value.requires_grad}
    optimizers = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}
    optimizer = optimizers[settings.name](list(values.values()), lr=settings.lr)
    rows: list[dict[str, float | None]] = []
    best = _Best(values, settings.steps)
    started = time.perf_counter()
    for step in range(settings.steps):
        row = _step(settings, step, values, optimizer, objective)
        done = step + 1
        is_look = done % settings.look_every == 0 or done == settings.steps
        validation = None
        if objective.validate and is_look:
            validation = objective.validate()
        _check_finite(row["loss"], validation, done)
        rows.append({**row, "val.loss": validation, "seconds": time.perf_counter() - started})
        look(rows[-1])
        if validation is not None:
            best.look(validation, done)
            if settings.patience and done - best.step >= settings.patience * settings.look_every:
                break
    if objective.validate:
        best.restore()
    return Course(rows, best.step)


def _step(
    settings: Optimiser,
    step: int,
    values: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    objective: Objective,
) -> dict[str, float]:
    """Takes a step, and describes it by the losses before it."""
    lr = settings.lr
    if settings.schedule == "cosine":
        lr *= (1 + math.cos(math.pi * step / settings.steps)) / 2
    for group in optimizer.param_groups:
        group["lr"] = lr
    mean_loss = objective.loss(_batch(settings, step, objective.num_examples)).mean()
    row = {
        "step": step + 1,
        "lr": lr,
        "loss": mean_loss.item(),
        "penalty": objective.penalty(values),
    }
    optimizer.zero_grad()
    mean_loss.backward()
    optimizer.step()
    _draw_to(objective.anchors, values, optimizer, lr)
    return row


def _check_finite(loss: float, validation: float | None, step: int) -> None:
    for value in (validation, loss):
        if value is not None and not math.isfinite(value):
            raise DivergedError(f"the loss is {value} at step {step}. Lower optimiser.lr.")


def _batch(settings: Optimiser, step: int, number: int) -> Tensor:
    """The rows of a step: all of them, or as many as a batch has, by (seed, step) alone."""
    if number <= settings.batch_size:
        return torch.arange(number)
    generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
    return torch.randperm(number, generator=generator)[: settings.batch_size]


@torch.no_grad()
def _draw_to(
    anchors: Mapping[str, Anchor],
    values: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    lr: float,
) -> None:
    """The proximal step of each anchor: the same stationary points as with its gradient, and stable
    at any strength.
    """
    for name, anchor in anchors.items():
        value = values[name]
        if value.grad is None:  # nothing moved it
            continue
        pull = 2 * anchor.strength * _step_size(optimizer, value, lr)
        # As a weighted mean, so that an infinite pull keeps the anchor to the bit and none leaves
        # the value alone.
        share = pull / (1 + pull)
        value.copy_(torch.where(share < 1, value + share * (anchor.at - value), anchor.at))


def _step_size(optimizer: torch.optim.Optimizer, value: Tensor, lr: float) -> Tensor:
    """A: how far the optimiser just moved each coordinate for a (mean) gradient of 1."""
    if isinstance(optimizer, torch.optim.SGD):
        return torch.full_like(value, lr)
    state: dict[str, Any] = optimizer.state[value]
    second = state["exp_avg_sq"] / (1 - ADAM_BETA2 ** float(state["step"]))
    step_sizes: Tensor = lr / (second.sqrt() + ADAM_EPS)
    return step_sizes
