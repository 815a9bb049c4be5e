"""Reptile (Nichol et al., 2018, arXiv:1803.02999)."""

from typing import ClassVar, Literal

from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from raymtl.learners.base import MetaLearner, Objective
from raymtl.learners.inner import InnerOptimizer, inner_loop
from raymtl.sharing import SharingArchitecture
from raymtl.types import Batch, Params


class Reptile(MetaLearner):
    """Moves the initialisation toward the adapted parameters.

    The meta-gradient is the mean over episodes of theta - phi_k after k steps. With one step of
    "sgd" it is inner_lr times the support gradient. The paper's outer rule is `train.optimizer:
    sgd`, `train.lr: 1`, `train.schedule: linear`. Any other optimiser takes the displacement as its
    gradient. The weighting acts through the inner objective, and its parameters follow their
    gradient at the query losses. Auxiliary terms and penalties of an architecture add their
    gradient at theta to the displacement.

    Deviation from the paper: "adam" has beta1 = 0 and starts anew in every episode, while the paper
    carries its state from task to task. So episodes do not depend on their order.

    Example: `learner: {name: reptile, inner_lr: 0.05, inner_steps: 8}`
    """

    name: Literal["reptile"] = "reptile"
    helps: ClassVar[str] = "second order is too dear, or the inner loop long"
    costs: ClassVar[str] = "k gradients of first order"
    inner_lr: PositiveFloat = 0.02
    inner_steps: PositiveInt = 5
    inner_optimizer: InnerOptimizer = "sgd"
    uses_query_gradient: ClassVar[bool] = False

    @property
    def num_steps(self) -> int:
        return self.inner_steps

    def adapt(
        self,
        model: SharingArchitecture,
        params: Params,
        support: Batch,
        objective: Objective,
        steps: int | None = None,
    ) -> Params:
        theta = {name: value for name, value in params.items() if name.startswith("model.")}

        fixed = {name: value.detach() for name, value in params.items()}

        def loss(phi: Params) -> Tensor:
            return objective(fixed, self.predict(model, phi, support.inputs), support)

        if steps is None:
            steps = self.inner_steps
        rates = dict.fromkeys(theta, self.inner_lr)
        phi = inner_loop(
            loss, theta, rates, steps, first_order=True, optimizer=self.inner_optimizer
        )
        return {**params, **phi}
