"""FairGrad, alpha-fair allocation (Ban & Ji, 2024, arXiv:2402.15638): (G w)_t = w_t^(-1/alpha) for
all tasks t.
"""

from collections.abc import Sequence
from functools import partial
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from raymtl.types import Task
from raymtl.weighting.base import GradientWeightingSpec
from raymtl.weighting.gramian import Array, GramianWeighting, cosines, leaving_out_zeros

MAX_STEPS = 100
SURE = 1e-10


def fair(products: Array, rounding: float, alpha: float, method: str) -> Array:
    """The one w > 0 with (G w)_t = w_t^(-1/alpha).

    Where some convex combination of the gradients is 0 there is none. Eigenvalues of the cosines
    below 1e-10, or below rounding, count as that, so that weights are finite there and their
    combination of the gradients is nearly 0.

    Found by Newton's method on weights and gains G w together, both kept positive, for alpha = 1
    and then for a ladder of exponents up to alpha, each from the solution of the one before. Raises
    RuntimeError where it does not converge, which takes gradients whose lengths are ten decades
    apart.
    """
    matrix, lengths = cosines(products)
    unit = np.exp(np.log(lengths).mean())
    norms = lengths / unit
    values, vectors = np.linalg.eigh(matrix)
    lift = (max(rounding, SURE) - values).clip(min=0)
    if lift.any():
        matrix = matrix + (vectors * lift) @ vectors.T
    gains = np.ones(len(norms))
    num_rungs = int(np.ceil(abs(np.log(alpha)) / np.log(1.5)))
    for rung in range(num_rungs + 1):
        exponent = alpha ** (rung / max(num_rungs, 1))
        weights = norms * (norms * gains) ** -exponent
        weights, gains = _solve(matrix, norms, weights, gains, exponent, method)
    scaled: Array = weights / norms * unit ** (-2 * alpha / (1 + alpha))
    return scaled


def _solve(
    matrix: Array, norms: Array, weights: Array, gains: Array, alpha: float, method: str
) -> tuple[Array, Array]:
    """Weights and gains of the unit gradients: gains = matrix @ weights, norms gains = (weights /
    norms)^(-1/alpha).
    """
    close = 0
    for _ in range(MAX_STEPS):
        excess = matrix @ weights - gains
        misfit = np.log(norms * gains) + np.log(weights / norms) / alpha
        # In these units the system is the matrix's plus the identity, well conditioned whatever the
        # matrix is.
        unit = np.sqrt(alpha * weights / gains)
        scaled = unit[:, None] * matrix * unit + np.eye(len(unit))
        of_weights = -unit * np.linalg.solve(scaled, unit * (excess + gains * misfit)) / weights
        of_gains = -misfit - of_weights / alpha
        relative = np.concatenate([of_weights, of_gains])
        size = min(1.0, 0.99 / max(-relative.min(), 0.99))
        weights, gains = weights * (1 + size * of_weights), gains * (1 + size * of_gains)
        if np.abs(relative).max() < 1e-3:
            # From here on errors square: 1e-3, 1e-6, 1e-12. Rounding may keep the steps themselves
            # from shrinking so.
            close += 1
            if close == 3:
                return weights, gains
    raise RuntimeError(
        f"{method}: Newton's method did not converge on the gradients of {len(weights)} tasks in "
        f"{MAX_STEPS} steps. Choose another weighting.name."
    )


class FairGrad(GramianWeighting):
    """Weights at which every task gains according to alpha-fairness: the smaller its gain, the
    larger its weight.

    alpha = 1 is Nash-MTL, or proportional fairness. As alpha grows, the gains <g_t, d> become
    equal; as it falls to 0, all weights become 1. The weights solve the paper's equation without a
    change of scale, so a task alone weighs |g|^(-2 alpha / (1 + alpha)).

    Deviations from the paper:
    - The equation is solved up to rounding. The paper and TorchJD call a nonlinear least-squares
      routine.
    - A task whose gradient is zero takes no part.
    """

    def __init__(self, num_tasks: int, alpha: float) -> None:
        super().__init__(num_tasks)
        self.alpha = alpha

    def solve(self, products: Array, rounding: float) -> Array:
        solve = partial(fair, alpha=self.alpha, method="fairgrad")
        return leaving_out_zeros(solve)(products, rounding)


class FairGradSpec(GradientWeightingSpec):
    """Divides the improvement fairly among the tasks; the larger `alpha`, the more equally.

    Example: `weighting: {name: fairgrad, alpha: 1.0}`
    """

    name: Literal["fairgrad"] = "fairgrad"
    helps: ClassVar[str] = (
        "the trade-off between tasks should be chosen: alpha from the sum to max-min"
    )
    alpha: Annotated[float, Field(ge=0.5, le=10)] = 2.0

    def build(self, tasks: Sequence[Task]) -> FairGrad:
        return FairGrad(len(tasks), self.alpha)
