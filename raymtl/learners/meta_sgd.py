"""Meta-SGD (Li et al., 2017, arXiv:1707.09835): phi_{j+1} = phi_j - alpha o grad L_S(phi_j), with
alpha learned.
"""

from typing import ClassVar, Literal

import torch

from raymtl.learners.gradient import UnrolledLearner
from raymtl.learners.inner import Rates
from raymtl.types import Params, prefixed, select


class MetaSGD(UnrolledLearner):
    """Learns an initialisation and, for every element of it, the rate at which the inner loop moves
    it.

    A rate may become negative: the inner loop then climbs. All begin at `inner_lr`, where the paper
    draws them from an interval. Deviation from the paper, which takes one step: all `inner_steps`
    have the same rates.

    Example: `learner: {name: meta_sgd, inner_lr: 0.05, inner_steps: 1}`
    """

    name: Literal["meta_sgd"] = "meta_sgd"
    helps: ClassVar[str] = "which weights should move, and how far, is worth twice the parameters"
    costs: ClassVar[str] = "as maml"

    def init_params(self, model_params: Params, generator: torch.Generator) -> Params:
        moved = select(self.start(prefixed(model_params, "model")), "model")
        rates = {name: torch.full_like(value, self.inner_lr) for name, value in moved.items()}
        return prefixed(rates, "inner_lr")

    def rates(self, params: Params, step: int) -> Rates:
        return prefixed(select(params, "learner.inner_lr"), "model")
