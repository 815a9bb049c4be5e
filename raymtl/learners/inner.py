"""The one inner loop: gradient steps on the support objective, batched by vmap or not, differentiable or not."""

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor
from torch.func import grad

from raymtl.types import Params

InnerOptimizer = Literal["sgd", "adam"]


def inner_loop(
    loss: Callable[[Params], Tensor],
    start: Params,
    inner_lr: Mapping[str, Tensor | float],
    steps: int,
    *,
    first_order: bool = False,
    optimizer: InnerOptimizer = "sgd",
) -> dict[str, Tensor]:
    """phi_0 = start, phi_{j+1} = phi_j - alpha * update(grad loss(phi_j)); returns phi_steps.

    `inner_lr` holds alpha for each tensor. With `first_order` the Jacobian of the steps is taken as the identity,
    and none of their graph is kept. "adam" is Adam with beta1 = 0 and beta2 = 0.999, fresh in every call.
    """
    phi = dict(start)
    second_moment = {name: torch.zeros_like(value) for name, value in phi.items()} if optimizer == "adam" else {}
    for step in range(1, steps + 1):
        # Detached before and not after the gradient: nothing outside then records the inner backward pass.
        at = {name: value.detach() for name, value in phi.items()} if first_order else phi
        update = grad(loss)(at)
        if optimizer == "adam":
            second_moment = {k: 0.999 * v + 0.001 * update[k].square() for k, v in second_moment.items()}
            correction = 1 - 0.999**step
            # 1e-8 under the root, not beside it: the root of an exact zero has no finite gradient.
            update = {k: g / (second_moment[k] / correction + 1e-8).sqrt() for k, g in update.items()}
        phi = {name: value - inner_lr[name] * update[name] for name, value in phi.items()}
    return phi
