"""The one inner loop: gradient steps on the support objective.

phi_{j+1} = phi_j - alpha_j update(grad L_S(phi_j)). It runs under vmap or without, and is
differentiable or not.
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.func import grad

from raymtl.encoders.norm import after_steps
from raymtl.internals.torch import is_transformed, spare_dynamo
from raymtl.types import Params

spare_dynamo()

InnerOptimizer = Literal["sgd", "momentum", "adam"]
Rates = Mapping[str, Tensor | float]
MOMENTUM = 0.9


class InnerState(NamedTuple):
    """The state of an inner loop: its parameters and the moments of its optimiser."""

    phi: dict[str, Tensor]
    moment: dict[str, Tensor]
    """The first moment of "momentum", the second of "adam"; empty for "sgd"."""


def inner_start(start: Params, optimizer: InnerOptimizer) -> InnerState:
    """The state before the first step, with all moments zero."""
    if optimizer == "sgd":
        return InnerState(dict(start), {})
    return InnerState(dict(start), {name: torch.zeros_like(value) for name, value in start.items()})


def inner_step(
    loss: Callable[[Params], Tensor],
    state: InnerState,
    alpha: Rates,
    step: int,
    *,
    first_order: bool = False,
    optimizer: InnerOptimizer = "sgd",
) -> InnerState:
    """phi_{j+1} = phi_j - alpha * update(grad loss(phi_j)).

    "momentum" is v <- 0.9 v + g. "adam" is Adam with beta1 = 0 and beta2 = 0.999.

    Args:
        loss: the support objective, a scalar.
        state: where the loop stands before the step.
        alpha: the rate of each tensor.
        step: j; the first step is 0.
        first_order: takes the Jacobian of the step as the identity, and records no graph of it.
        optimizer: how the gradient becomes an update.
    """
    phi, moment = state
    with after_steps(step):
        update = slope(loss, phi, first_order=first_order)
    if optimizer == "momentum":
        update = moment = {k: MOMENTUM * v + update[k] for k, v in moment.items()}
    elif optimizer == "adam":
        moment = {k: 0.999 * v + 0.001 * update[k].square() for k, v in moment.items()}
        correction = 1 - 0.999 ** (step + 1)
        # 1e-8 under the root, not beside it: the root of an exact zero has no finite gradient.
        update = {k: g / (moment[k] / correction + 1e-8).sqrt() for k, g in update.items()}
    return InnerState(
        {name: value - alpha[name] * update[name] for name, value in phi.items()}, moment
    )


def slope(
    loss: Callable[[Params], Tensor], phi: Params, *, first_order: bool = False
) -> dict[str, Tensor]:
    """grad loss(phi); zeros for a parameter on which the loss does not depend.

    The result has a graph if torch records gradients and `first_order` is false.
    """
    followed = torch.is_grad_enabled() and not first_order
    # Detached before the gradient and not after it: then nothing outside records the inner
    # backward pass.
    if not followed:
        phi = {name: value.detach() for name, value in phi.items()}
    if is_transformed() or (followed and not all(v.requires_grad for v in phi.values())):
        gradients: dict[str, Tensor] = grad(loss)(phi)
        return gradients
    # The same in a plain loop, where torch.func.grad would cost more and keep a graph in any case.
    with torch.enable_grad():
        if followed:
            # Views: what phi was computed from may itself be in phi, and is another variable here.
            at = {name: value.view_as(value) for name, value in phi.items()}
        else:
            at = {name: value.requires_grad_() for name, value in phi.items()}
        value = loss(at)
        if not value.requires_grad:
            return {name: torch.zeros_like(each) for name, each in phi.items()}
        gradients_of_all = torch.autograd.grad(
            value, list(at.values()), create_graph=followed, materialize_grads=True
        )
    return dict(zip(at, gradients_of_all, strict=True))


def inner_path(
    loss: Callable[[Params], Tensor],
    start: Params,
    rates: Callable[[int], Rates],
    *,
    first_order: bool = False,
    optimizer: InnerOptimizer = "sgd",
) -> Iterator[dict[str, Tensor]]:
    """phi_0 = start, then phi after each `inner_step`, without end.

    `rates(j)` holds alpha_j for each tensor.
    """
    state, step = inner_start(start, optimizer), 0
    while True:
        yield state.phi
        state = inner_step(
            loss, state, rates(step), step, first_order=first_order, optimizer=optimizer
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
