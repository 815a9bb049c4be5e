"""The one inner loop: gradient steps on the support objective, batched by vmap or not, differentiable or not."""

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Literal

import torch
from pydantic import NonNegativeInt, PositiveFloat
from torch import Tensor
from torch.func import grad

from raymtl.learners.base import MetaLearner, Objective
from raymtl.sharing import SharingArchitecture
from raymtl.types import Batch, Params

InnerOptimizer = Literal["sgd", "momentum", "adam"]
Rates = Mapping[str, Tensor | float]


def inner_path(
    loss: Callable[[Params], Tensor],
    start: Params,
    rates: Callable[[int], Rates],
    *,
    first_order: bool = False,
    optimizer: InnerOptimizer = "sgd",
) -> Iterator[dict[str, Tensor]]:
    """phi_0 = start, phi_{j+1} = phi_j - alpha_j * update(grad loss(phi_j)); yields phi_0, phi_1, ... without end.

    `rates(j)` holds alpha_j for each tensor. With `first_order` the Jacobian of the steps is taken as the identity,
    and none of their graph is kept. "momentum" is v <- 0.9 v + g, "adam" is Adam with beta1 = 0 and beta2 = 0.999;
    both are fresh in every call.
    """
    phi = dict(start)
    moment = {name: torch.zeros_like(value) for name, value in phi.items()}  # the first, or the second of "adam"
    step = 0
    while True:
        yield phi
        # Detached before and not after the gradient: nothing outside then records the inner backward pass.
        at = {name: value.detach() for name, value in phi.items()} if first_order else phi
        update = grad(loss)(at)
        if optimizer == "momentum":
            update = moment = {k: 0.9 * v + update[k] for k, v in moment.items()}
        elif optimizer == "adam":
            moment = {k: 0.999 * v + 0.001 * update[k].square() for k, v in moment.items()}
            correction = 1 - 0.999 ** (step + 1)
            # 1e-8 under the root, not beside it: the root of an exact zero has no finite gradient.
            update = {k: g / (moment[k] / correction + 1e-8).sqrt() for k, g in update.items()}
        alpha = rates(step)
        phi = {name: value - alpha[name] * update[name] for name, value in phi.items()}
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


class GradientLearner(MetaLearner):
    """Takes gradient steps on the support objective; what they move, from where and how fast is for subclasses."""

    name: str
    inner_lr: PositiveFloat = 0.02
    inner_steps: NonNegativeInt = 3
    inner_optimizer: InnerOptimizer = "sgd"

    @property
    def num_steps(self) -> int:
        return self.inner_steps

    def start(self, params: Params) -> dict[str, Tensor]:
        """What the inner loop moves, and from where: all of the model."""
        return {name: value for name, value in params.items() if name.startswith("model.")}

    def rates(self, params: Params, step: int) -> Rates:
        """The rate of each of these in the inner step `step`, the first of which is 0."""
        return dict.fromkeys(self.start(params), self.inner_lr)

    def fitted(self, params: Params, phi: Params) -> Params:
        """Parameters that predict as the inner loop has it at `phi`."""
        return {**params, **phi}

    def path(
        self, model: SharingArchitecture, params: Params, support: Batch, objective: Objective, *, first_order: bool
    ) -> Iterator[Params]:
        """Parameters before the first inner step and after each, without end."""
        # In first order nothing of the inner gradient is followed, its dependence on the weighting included.
        fixed = {name: value.detach() for name, value in params.items()} if first_order else params

        def loss(phi: Params) -> Tensor:
            return objective(fixed, self.predict(model, self.fitted(fixed, phi), support.inputs), support)

        steps = inner_path(
            loss,
            self.start(params),
            lambda step: self.rates(params, step),
            first_order=first_order,
            optimizer=self.inner_optimizer,
        )
        return (self.fitted(params, phi) for phi in steps)


class UnrolledLearner(GradientLearner):
    """Differentiates through its inner steps; `first_order` takes their Jacobian as the identity."""

    first_order: bool = False

    def adapt(
        self, model: SharingArchitecture, params: Params, support: Batch, objective: Objective, steps: int | None = None
    ) -> Params:
        path = self.path(model, params, support, objective, first_order=self.first_order)
        return next(islice(path, self.inner_steps if steps is None else steps, None))
