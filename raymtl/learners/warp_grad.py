"""WarpGrad (Flennerhag et al., 2020, arXiv:1909.00025).

phi_{j+1} = phi_j - alpha grad L_S(phi_j; omega); min over omega of mean_j L_Q(phi_j - alpha grad
L_S(phi_j; omega); omega), the points phi_j of the path taken as given.
"""

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import ClassVar, Literal

import torch
from pydantic import PositiveInt
from torch import Tensor

from raymtl.learners.base import STEPS_TAKEN, Objective
from raymtl.learners.gradient import GradientLearner
from raymtl.learners.inner import InnerState, inner_start, inner_step
from raymtl.learners.t_net import folded, identities
from raymtl.sharing import SharingArchitecture
from raymtl.types import Batch, Params, prefixed, select


class WarpGrad(GradientLearner):
    """Learns linear warps that precondition the inner gradient, so that every inner step lowers the
    query loss.

    The warp omega of a parameter is what T is in t_net: a matrix [D, D] behind the layer that
    starts as the identity, is not adapted, and is multiplied into the adapted parameters. The two
    learners differ in how it is learned. t_net differentiates the query loss at the end through all
    k steps. Here the outer loss is the mean of the query losses after each step. The gradient
    passes through that one step, and the parameters before it are constants. So warps are learned
    for every point of a path, and no product of many Jacobians arises.

    The initialisation is learned by the same gradients, as if every point of the path moved with
    it. With one step this is the whole gradient of t_net, and with warps at the identity that of
    maml.

    Deviations from the paper: warps are linear, so that they can be multiplied in; every point of a
    new path is used once, while the paper collects paths and draws points from them; the paper
    leaves open how to learn the initialisation, and tries MAML and Leap.

    Example: `learner: {name: warp_grad, inner_lr: 0.1, inner_steps: 5}`
    """

    name: Literal["warp_grad"] = "warp_grad"
    helps: ClassVar[str] = (
        "paths are long, and their first steps should not be learned through all that follow"
    )
    costs: ClassVar[str] = (
        "k gradients of first order, and k times a step of second order with the query set"
    )
    inner_steps: PositiveInt = 3

    def init_params(self, model_params: Params, generator: torch.Generator) -> Params:
        return prefixed(
            identities(select(self.start(prefixed(model_params, "model")), "model")), "transform"
        )

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
        path = self.path(model, params, support, objective, first_order=False)
        return folded(next(islice(path, steps, None)))

    def evaluated_params(
        self,
        model: SharingArchitecture,
        params: Params,
        support: Batch,
        objective: Objective,
        step: int,
    ) -> Sequence[tuple[float, Params]]:
        loss, theta = self.support_loss(model, objective), self.start(params)
        state, evaluated = inner_start(theta, self.inner_optimizer), []
        for index in range(self.inner_steps):
            # The value of a point on the path, the gradient of where the path began.
            point = {
                name: value + (state.phi[name] - value).detach() for name, value in theta.items()
            }
            moment = {name: value.detach() for name, value in state.moment.items()}
            state = inner_step(
                lambda phi: loss(phi, params, support),
                InnerState(point, moment),
                self.rates(params, index),
                index,
                optimizer=self.inner_optimizer,
            )
            phi = {**folded(self.fitted(params, state.phi)), STEPS_TAKEN: torch.tensor(index + 1)}
            evaluated.append((1 / self.inner_steps, phi))
        return evaluated

    def predict(
        self, model: SharingArchitecture, params: Params, inputs: Tensor | Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        return super().predict(model, folded(params), inputs)
