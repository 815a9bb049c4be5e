"""MAML (Finn et al., 2017, arXiv:1703.03400)."""

from typing import ClassVar, Literal

import torch
from pydantic import NonNegativeInt, PositiveFloat

from raymtl.learners.base import MetaLearner, Objective
from raymtl.learners.inner import inner_loop
from raymtl.sharing import SharingArchitecture
from raymtl.types import Batch, Params, prefixed, select


class MAML(MetaLearner):
    """Learns an initialisation from which a few gradient steps on the support set solve a task.

    The meta-gradient is that of the query loss through all `inner_steps`; `first_order` takes the Jacobian of the
    steps as the identity (FOMAML). With `inner_steps: 0` it is plain multi-task training on the query sets.
    `learn_inner_lr` learns one rate for each tensor from `inner_lr` on (as MAML++, arXiv:1810.09502, but one for
    all steps); it is learned as its logarithm, so that it stays positive.
    """

    name: Literal["maml"] = "maml"
    helps: ClassVar[str] = "few gradient steps are affordable when a new task comes"
    costs: ClassVar[str] = "k + 1 gradients, in second order through all of them"
    inner_lr: PositiveFloat = 0.02
    inner_steps: NonNegativeInt = 3
    first_order: bool = False
    learn_inner_lr: bool = False

    @property
    def num_steps(self) -> int:
        return self.inner_steps

    def init_params(self, model_params: Params) -> Params:
        if not self.learn_inner_lr:
            return {}
        rates = {name: value.new_tensor(self.inner_lr).log() for name, value in model_params.items()}
        return prefixed(rates, "log_inner_lr")

    def adapt(
        self, model: SharingArchitecture, params: Params, support: Batch, objective: Objective, steps: int | None = None
    ) -> Params:
        theta = {name: value for name, value in params.items() if name.startswith("model.")}
        # In first order nothing of the inner gradient is followed, its dependence on the weighting included.
        fixed = {name: value.detach() for name, value in params.items()} if self.first_order else params

        def loss(phi: Params) -> torch.Tensor:
            return objective(fixed, self.predict(model, phi, support.inputs), support)

        log_rates = select(params, "learner.log_inner_lr")
        rates = {name: log_rates[name.removeprefix("model.")].exp() if log_rates else self.inner_lr for name in theta}
        steps = self.inner_steps if steps is None else steps
        return {**params, **inner_loop(loss, theta, rates, steps, first_order=self.first_order)}
