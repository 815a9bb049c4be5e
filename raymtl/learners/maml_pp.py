"""MAML++ (Antoniou et al., 2019, arXiv:1810.09502).

phi_{j+1} = phi_j - alpha_j grad L_S(phi_j); min over theta and alpha of sum_j v_j L_Q(phi_j), v
annealed.
"""

from collections.abc import Hashable, Sequence
from itertools import islice
from typing import ClassVar, Literal

import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor

from raymtl.learners.base import STEPS_TAKEN, Objective
from raymtl.learners.gradient import GradientLearner
from raymtl.learners.inner import Rates
from raymtl.sharing import SharingArchitecture
from raymtl.types import Batch, Params, prefixed, select


class MAMLPlusPlus(GradientLearner):
    """MAML with a learned rate for each tensor and inner step, trained at first on the query loss
    after every inner step.

    The outer loss is a weighted sum of the query losses after each of the k inner steps, with
    weights v that sum to 1. At outer step 0 the weights are equal. All but the last then fall
    linearly, and from the outer step `multi_step_until` on the last is the only one left. Before
    the outer step `first_order_until` the Jacobian of the inner steps is taken as the identity. If
    an adaptation takes more than `inner_steps` steps, the further ones use the rates of the last.

    Deviations from the paper: rates are learned as their logarithms, so that they stay positive;
    the paper keeps a small weight for the early steps. The paper's cosine schedule of the outer
    rate is `train.schedule: cosine`. Its norms with scales for each step are `encoder.norm:
    per_step`, which keep no statistics from episode to episode.

    Example: `learner: {name: maml_pp, inner_steps: 5, multi_step_until: 500}`
    """

    name: Literal["maml_pp"] = "maml_pp"
    helps: ClassVar[str] = "maml is unstable, or its rates are hard to choose"
    costs: ClassVar[str] = "as maml, and k - 1 more of the query set while every step is judged"
    inner_steps: PositiveInt = 3
    multi_step_until: NonNegativeInt = 300
    first_order_until: NonNegativeInt = 300

    def init_params(self, model_params: Params, generator: torch.Generator) -> Params:
        moved = select(self.start(prefixed(model_params, "model")), "model")
        rates = {
            name: value.new_full((self.inner_steps,), self.inner_lr).log()
            for name, value in moved.items()
        }
        return prefixed(rates, "log_inner_lr")

    def rates(self, params: Params, step: int) -> Rates:
        at = min(step, self.inner_steps - 1)
        rates: dict[str, Tensor | float] = {
            f"model.{name}": rates[at].exp()
            for name, rates in select(params, "learner.log_inner_lr").items()
        }
        return rates

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
        return next(islice(path, steps, None))

    def graph_key(self, step: int) -> Hashable | None:
        if step < self.multi_step_until:
            return None
        return "first order" if step < self.first_order_until else "second order"

    def evaluated_params(
        self,
        model: SharingArchitecture,
        params: Params,
        support: Batch,
        objective: Objective,
        step: int,
    ) -> Sequence[tuple[float, Params]]:
        path = self.path(
            model, params, support, objective, first_order=step < self.first_order_until
        )
        after = islice(path, 1, self.inner_steps + 1)
        evaluated = []
        pairs = zip(self.step_weights(step), after, strict=True)
        for taken, (weight, phi) in enumerate(pairs, start=1):
            if weight:
                evaluated.append((weight, {**phi, STEPS_TAKEN: torch.tensor(taken)}))
        return evaluated

    def step_weights(self, step: int) -> list[float]:
        """The weights v of the query losses after each inner step, in the outer step `step`."""
        if step < self.multi_step_until:
            share = 1 - step / self.multi_step_until
        else:
            share = 0.0
        early = share / self.inner_steps
        return [early] * (self.inner_steps - 1) + [1 - early * (self.inner_steps - 1)]
