"""The one inner loop: gradient steps on the support objective, batched by vmap or not,
differentiable or not.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import islice
from typing import Annotated, Literal, NamedTuple, Self

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from torch import Tensor
from torch.func import grad

from raymtl.encoders.norm import after_steps
from raymtl.learners.base import MetaLearner, Objective
from raymtl.learners.checkpointed import checkpointed
from raymtl.learners.implicit import implicit, through_equal_steps
from raymtl.sharing import SharingArchitecture
from raymtl.types import Batch, Params, UserError

InnerOptimizer = Literal["sgd", "momentum", "adam"]
Rates = Mapping[str, Tensor | float]
MOMENTUM = 0.9


class Place(NamedTuple):
    """Where an inner loop is: its parameters, and what its optimiser remembers of them, if it does."""

    phi: dict[str, Tensor]
    moment: dict[str, Tensor]
    """The first moment of "momentum", the second of "adam"."""


def inner_start(start: Params, optimizer: InnerOptimizer) -> Place:
    """With a fresh optimiser."""
    remembers = () if optimizer == "sgd" else start.items()
    return Place(dict(start), {name: torch.zeros_like(value) for name, value in remembers})


def inner_step(
    loss: Callable[[Params], Tensor],
    place: Place,
    alpha: Rates,
    step: int,
    *,
    first_order: bool = False,
    optimizer: InnerOptimizer = "sgd",
) -> Place:
    """phi_{j+1} = phi_j - alpha * update(grad loss(phi_j)), j = `step`, of which the first is 0.

    With `first_order` the Jacobian of the step is taken as the identity, and none of its graph is
    kept. "momentum" is v <- 0.9 v + g, "adam" is Adam with beta1 = 0 and beta2 = 0.999.
    """
    phi, moment = place
    # Detached before and not after the gradient: nothing outside then records the inner backward
    # pass.
    if first_order:
        at = {name: value.detach() for name, value in phi.items()}
    else:
        at = phi
    with after_steps(step):
        update = grad(loss)(at)
    if optimizer == "momentum":
        update = moment = {k: MOMENTUM * v + update[k] for k, v in moment.items()}
    elif optimizer == "adam":
        moment = {k: 0.999 * v + 0.001 * update[k].square() for k, v in moment.items()}
        correction = 1 - 0.999 ** (step + 1)
        # 1e-8 under the root, not beside it: the root of an exact zero has no finite gradient.
        update = {k: g / (moment[k] / correction + 1e-8).sqrt() for k, g in update.items()}
    return Place({name: value - alpha[name] * update[name] for name, value in phi.items()}, moment)


def inner_path(
    loss: Callable[[Params], Tensor],
    start: Params,
    rates: Callable[[int], Rates],
    *,
    first_order: bool = False,
    optimizer: InnerOptimizer = "sgd",
) -> Iterator[dict[str, Tensor]]:
    """phi_0 = start, then phi after each `inner_step`, without end; `rates(j)` holds alpha_j for
    each tensor.
    """
    place, step = inner_start(start, optimizer), 0
    while True:
        yield place.phi
        place = inner_step(
            loss, place, rates(step), step, first_order=first_order, optimizer=optimizer
        )
        step += 1


def inner_loop(
    loss: Callable[[Params], Tensor],
    start: Params,
    inner_lr: Rates,
    steps: int,
    *,
    first_order: bool = False,
    optimizer: InnerOptimizer = "sgd",
) -> dict[str, Tensor]:
    """phi_steps of `inner_path` with the same rates in all steps."""
    path = inner_path(loss, start, lambda _: inner_lr, first_order=first_order, optimizer=optimizer)
    return next(islice(path, steps, None))


def chosen(name: str, patterns: Sequence[str]) -> bool:
    """Whether the last of the patterns that the name matches chooses it, and is not one with `-`
    that leaves it out.
    """
    last = next((p for p in reversed(patterns) if fnmatchcase(name, p.removeprefix("-"))), "-")
    return not last.startswith("-")


class GradientLearner(MetaLearner):
    """Takes gradient steps on the support objective; what they move, from where and how fast is for
    subclasses.

    `adapts` are patterns over the names of the model's parameters, which a run's model.safetensors
    has with `model.` before them: `heads.*`, `encoders.0.stages.1.*`, `*.bias`. The inner loop
    moves what they match, other than what a later pattern with `-` before it leaves out: ["*",
    "-heads.*"] is all but the heads.
    """

    name: str
    inner_lr: PositiveFloat = 0.02
    inner_steps: NonNegativeInt = 3
    inner_optimizer: InnerOptimizer = "sgd"
    adapts: Annotated[tuple[str, ...], Field(min_length=1)] = ("*",)

    @property
    def num_steps(self) -> int:
        return self.inner_steps

    def check_parameters(self, names: Callable[[], Sequence[str]]) -> tuple[str, str] | None:
        if self.adapts == ("*",):
            return None
        existing = names()
        for pattern in self.adapts:
            if not any(fnmatchcase(name, pattern.removeprefix("-")) for name in existing):
                return "adapts", (
                    f"expected patterns of the model's parameters, and '{pattern}' matches none of "
                    f"the {len(existing)}, such as {existing[0]} and {existing[-1]}. Correct the "
                    "pattern."
                )
        if not any(chosen(name, self.adapts) for name in existing):
            return (
                "adapts",
                f"expected to choose a parameter, got {list(self.adapts)}, which leave out all. "
                "Remove one.",
            )
        return None

    @property
    def learns_rates(self) -> bool:
        """Whether `rates` may depend on parameters, as they do where a subclass has its own."""
        return type(self).rates is not GradientLearner.rates

    def start(self, params: Params) -> dict[str, Tensor]:
        """What the inner loop moves, and from where: all of the model that it `adapts`."""
        return {
            name: value
            for name, value in params.items()
            if name.startswith("model.") and chosen(name.removeprefix("model."), self.adapts)
        }

    def rates(self, params: Params, step: int) -> Rates:
        """The rate of each of these in the inner step `step`, the first of which is 0."""
        return dict.fromkeys(self.start(params), self.inner_lr)

    def fitted(self, params: Params, phi: Params) -> Params:
        """Parameters that predict as the inner loop has it at `phi`."""
        return {**params, **phi}

    def support_loss(
        self, model: SharingArchitecture, objective: Objective
    ) -> Callable[[Params, Params, Batch], Tensor]:
        """(phi, params, support) -> what the inner loop goes down, a scalar of its arguments and
        nothing else.
        """

        def loss(phi: Params, params: Params, support: Batch) -> Tensor:
            return objective(
                params, self.predict(model, self.fitted(params, phi), support.inputs), support
            )

        return loss

    def path(
        self,
        model: SharingArchitecture,
        params: Params,
        support: Batch,
        objective: Objective,
        *,
        first_order: bool,
    ) -> Iterator[Params]:
        """Parameters before the first inner step and after each, without end."""
        # In first order nothing of the inner gradient is followed, its dependence on the weighting
        # included.
        fixed = {name: value.detach() for name, value in params.items()} if first_order else params
        loss = self.support_loss(model, objective)
        steps = inner_path(
            lambda phi: loss(phi, fixed, support),
            self.start(params),
            lambda step: self.rates(params, step),
            first_order=first_order,
            optimizer=self.inner_optimizer,
        )
        return (self.fitted(params, phi) for phi in steps)


class UnrolledLearner(GradientLearner):
    """Differentiates through its inner steps; `first_order` takes their Jacobian as the identity.

    `gradient` is how it goes back through the steps. "unrolled" keeps what each of them computed.
    "checkpointed" keeps some 2 sqrt(k) of the k inner parameters and computes each step again,
    twice, for the same gradient in the memory of one step. "implicit" keeps the last inner
    parameters alone, and takes the second derivatives that the steps met on their way as they are
    where they arrived: exact for the initialisation where the objective is quadratic, for all else
    the nearer the longer the steps have been at their goal. It costs `curvature_products` products
    with the curvature instead of k (docs/long-loops.md).
    """

    first_order: bool = False
    gradient: Literal["unrolled", "checkpointed", "implicit"] = "unrolled"
    curvature_products: PositiveInt = 10

    @model_validator(mode="after")
    def _gradient_that_exists(self) -> Self:
        if self.gradient != "unrolled" and self.first_order:
            raise UserError(
                "learner.gradient: expected unrolled with learner.first_order: true, which goes "
                f"back through no step, got {self.gradient}. Leave out one of the two."
            )
        if self.gradient == "implicit" and (self.learns_rates or self.inner_optimizer == "adam"):
            if self.learns_rates:
                given = "learned inner rates"
            else:
                given = "learner.inner_optimizer: adam"
            raise UserError(
                f"learner.gradient: expected unrolled or checkpointed with {given}, since implicit "
                "needs steps that are linear in the gradient, of one rate. Take checkpointed, "
                "which needs no more memory."
            )
        return self

    @property
    def rematerializes(self) -> bool:
        return self.gradient != "unrolled"

    @property
    def has_per_step_params(self) -> bool:
        return (
            self.inner_steps > 0 and self.gradient != "implicit"
        )  # which takes all steps for alike

    def adapt(
        self,
        model: SharingArchitecture,
        params: Params,
        support: Batch,
        objective: Objective,
        steps: int | None = None,
    ) -> Params:
        if steps is None:
            steps = self.inner_steps
        else:
            steps = steps
        if self.gradient == "unrolled" or not steps:
            return next(
                islice(
                    self.path(model, params, support, objective, first_order=self.first_order),
                    steps,
                    None,
                )
            )
        loss, theta = self.support_loss(model, objective), self.start(params)
        if self.gradient == "checkpointed":

            def step(place: Place, params: Params, support: Batch, index: int) -> Place:
                alpha = self.rates(params, index)
                return inner_step(
                    lambda phi: loss(phi, params, support),
                    place,
                    alpha,
                    index,
                    optimizer=self.inner_optimizer,
                )

            phi = checkpointed(
                step, inner_start(theta, self.inner_optimizer), params, support, steps
            ).phi
        else:

            def find(theta: Params, params: Params, support: Batch) -> Params:
                rates = dict.fromkeys(theta, self.inner_lr)
                return inner_loop(
                    lambda phi: loss(phi, params, support),
                    theta,
                    rates,
                    steps,
                    first_order=True,
                    optimizer=self.inner_optimizer,
                )

            if self.inner_optimizer == "momentum":
                momentum = MOMENTUM
            else:
                momentum = 0.0
            back = through_equal_steps(self.inner_lr, momentum, steps, self.curvature_products)
            phi = implicit(loss, find, back, theta, params, support)
        return self.fitted(params, phi)
