"""CAVIA, context adaptation (Zintgraf et al., 2019, arXiv:1810.03642).

c_0 = 0, c_{j+1} = c_j - alpha grad_c L_S(theta, c_j); min over theta of L_Q(theta, c_k).
"""

from typing import ClassVar, Literal

import torch
from pydantic import PositiveInt
from torch import Tensor

from raymtl.learners.gradient import UnrolledLearner
from raymtl.types import Params, matches_last, prefixed, select


class CAVIA(UnrolledLearner):
    """Fits a few numbers, the context, to the support set: a learned map of the context shifts the
    biases of the model.

    Let c be the context, `num_context` numbers that start at 0. Every parameter b [D] of one
    dimension becomes b + V c, where V [D, num_context] is learned in the outer loop. If b is the
    bias of a layer, this equals the paper's concatenation of c to the layer's inputs, W x + V c +
    b. If b is the scale or the shift of a norm, it is the paper's feature-wise modulation.
    Parameters that `adapts` leaves out are not shifted. The adapted parameters include V c, so they
    are those of an ordinary model.

    Deviations from the paper: c enters every layer instead of one; V starts with the variance 1 /
    num_context, so that on average the first step lowers the loss as much as a step of maml on the
    biases; `first_order` ignores that c depends on theta.

    Example: `learner: {name: cavia, inner_lr: 0.5, num_context: 4}`
    """

    name: Literal["cavia"] = "cavia"
    helps: ClassVar[str] = (
        "tasks differ in few respects: a support set cannot be overfitted by a few numbers"
    )
    costs: ClassVar[str] = "as maml, with few numbers to store a task"
    num_context: PositiveInt = 8

    def init_params(self, model_params: Params, generator: torch.Generator) -> Params:
        # Not from zero: neither V nor c would ever move.
        maps = {
            name: torch.randn(len(value), self.num_context, generator=generator).to(value)
            / self.num_context**0.5
            for name, value in model_params.items()
            if value.ndim == 1 and matches_last(name, self.adapts)
        }
        return prefixed(maps, "context_map")

    def start(self, params: Params) -> dict[str, Tensor]:
        return {"context": next(iter(params.values())).new_zeros(self.num_context)}

    def fitted(self, params: Params, phi: Params) -> Params:
        maps = prefixed(select(params, "learner.context_map"), "model")
        return {
            **params,
            **{name: params[name] + map_to @ phi["context"] for name, map_to in maps.items()},
        }
