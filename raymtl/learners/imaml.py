"""iMAML, implicit gradients (Rajeswaran et al., 2019, arXiv:1909.04630).

phi* = argmin over phi of L_S(phi) + lambda/2 |phi - theta|^2; the meta-gradient is (I +
H/lambda)^-1 grad L_Q(phi*), H the Hessian of L_S at phi*.
"""

from typing import ClassVar, Literal

import torch
from pydantic import NonNegativeInt, PositiveFloat
from torch import Tensor

from raymtl.learners.base import Objective
from raymtl.learners.gradient import GradientLearner
from raymtl.learners.implicit import implicit, to_a_minimum
from raymtl.learners.inner import inner_loop
from raymtl.sharing import SharingArchitecture
from raymtl.types import Batch, Params


class IMAML(GradientLearner):
    """Fits the model near its initialisation, and differentiates at the minimum that the inner
    steps approach instead of through the steps.

    The `inner_steps` steps minimise L_S + strength/2 |phi - theta|^2, where `strength` is the
    paper's lambda. Memory does not grow with their number. The meta-gradient solves a linear system
    by `cg_steps` steps of conjugate gradients, each of which costs one Hessian-vector product. It
    is exact if the inner steps have converged and the system is solved. The solver starts from grad
    L_Q(phi*), which is therefore the meta-gradient with `cg_steps: 0`. It stops at a direction
    without positive curvature, which exists only if L_S is not convex. The weighting's parameters
    get their implicit gradient too.

    With `inner_steps: 0` this is plain multi-task training, as with maml. With ReLU the minimum can
    lie on a kink. The steps then oscillate around it, and the gradient is that of the linear piece
    on which they end. The inner loop runs in the parameters' precision, whatever `train.precision`
    is.

    Example: `learner: {name: imaml, inner_steps: 20, strength: 1.0}`
    """

    name: Literal["imaml"] = "imaml"
    helps: ClassVar[str] = "the inner loop is long: memory is that of one step"
    costs: ClassVar[str] = "k gradients of first order, and 2 gradients for each of cg_steps"
    inner_steps: NonNegativeInt = 10
    strength: PositiveFloat = 2.0
    cg_steps: NonNegativeInt = 5

    @property
    def rematerializes(self) -> bool:
        return True

    @property
    def has_per_step_params(self) -> bool:
        return False  # there is one goal

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
        if steps == 0:
            return params
        loss = self.support_loss(model, objective)

        def minimum(theta: Params, params: Params, support: Batch) -> Params:
            def regularised(phi: Params) -> Tensor:
                distance = torch.stack(
                    [(phi[name] - start).square().sum() for name, start in theta.items()]
                ).sum()
                return loss(phi, params, support) + self.strength / 2 * distance

            rates = dict.fromkeys(theta, self.inner_lr)
            return inner_loop(
                regularised, theta, rates, steps, first_order=True, optimizer=self.inner_optimizer
            )

        back = to_a_minimum(self.strength, self.cg_steps)
        return self.fitted(
            params, implicit(loss, minimum, back, self.start(params), params, support)
        )
