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
    """Learns warps that precondition the inner gradient, so that every step of a path lowers the
    query loss.

    The warp omega of a parameter W [D, ...] of two dimensions or more that the inner loop adapts is
    t_net's T [D, D] behind the layer, not adapted, the identity at first; adapted parameters have
    it multiplied in, as t_net's. What differs is what the warps are learned by. t_net goes back
    through all of the steps to the loss at their end. Here each of the k steps is judged by itself,
    by the query loss after it, and with weight 1/k: the gradient passes through that one step, and
    what came before is a constant. So warps learn for wherever a path may lead, and nothing
    multiplies along it.

    The initialisation is learned by the same gradients, as if every point of the path moved with
    it; with one step all of it is the gradient of t_net, with warps at the identity that of maml.
    Deviations from the paper: warps are linear, so that they can be multiplied in; every point of a
    fresh path is judged once, where the paper collects paths and draws from them; the paper leaves
    open what learns the initialisation, and tries MAML and Leap.

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
