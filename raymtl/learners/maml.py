"""MAML (Finn et al., 2017, arXiv:1703.03400).

phi_0 = theta, phi_{j+1} = phi_j - alpha grad L_S(phi_j); min over theta of L_Q(phi_k).
"""

from typing import ClassVar, Literal

import torch

from raymtl.learners.gradient import UnrolledLearner
from raymtl.learners.inner import Rates
from raymtl.types import Params, prefixed, select


class MAML(UnrolledLearner):
    """Learns an initialisation from which a few gradient steps on the support set solve a task.

    The meta-gradient is that of the query loss through all `inner_steps`; `first_order` takes the
    Jacobian of the steps as the identity (FOMAML). With `inner_steps: 0` it is plain multi-task
    training on the query sets. `learn_inner_lr` learns one rate for each tensor from `inner_lr` on
    (as MAML++, arXiv:1810.09502, but one for all steps); it is learned as its logarithm, so that it
    stays positive.

    Example: `learner: {name: maml, inner_lr: 0.1, inner_steps: 5, first_order: true}`
    """

    name: Literal["maml"] = "maml"
    helps: ClassVar[str] = "few gradient steps are affordable when a new task comes"
    costs: ClassVar[str] = "k + 1 gradients, in second order through all of them"
    learn_inner_lr: bool = False

    @property
    def learns_rates(self) -> bool:
        return self.learn_inner_lr

    def init_params(self, model_params: Params, generator: torch.Generator) -> Params:
        if not self.learn_inner_lr:
            return {}
        moved = select(self.start(prefixed(model_params, "model")), "model")
        rates = {name: value.new_tensor(self.inner_lr).log() for name, value in moved.items()}
        return prefixed(rates, "log_inner_lr")

    def rates(self, params: Params, step: int) -> Rates:
        if not self.learn_inner_lr:
            return super().rates(params, step)
        return {
            f"model.{name}": rate.exp()
            for name, rate in select(params, "learner.log_inner_lr").items()
        }
