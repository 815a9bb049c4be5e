"""MGDA, the multiple-gradient descent algorithm (Desideri, 2012; Sener & Koltun, 2018,
arXiv:1810.04650).

min over the simplex of |sum_t w_t g_t|^2.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

from torch import Tensor

from raymtl.types import Task
from raymtl.weighting.base import GradientWeighting, GradientWeightingSpec, Jacobian
from raymtl.weighting.gramian import Array, factor, in_hull, leaving_out_zeros, solved


def shortest(products: Array, rounding: float) -> Array:
    """K times the weights on the simplex of the shortest point in the gradients' convex hull."""
    return len(products) * in_hull(factor(products), "mgda")


class MGDA(GradientWeighting):
    """K times the shortest convex combination of the gradients, which conflicts with none of them.

    Deviations from the paper:
    - The factor K, with which equal gradients give their plain sum. (TorchJD has no such factor.)
    - The weights are found by an active-set method up to rounding, not by Frank-Wolfe steps.
    - A gradient that is exactly zero takes no part. It would itself be the shortest combination,
      and stop all other tasks. Tasks that share no parameter have such a gradient.

    `normalize` divides the gradients before the search for the weights, as in the authors' code:
    by their norm ("l2"), by the loss ("loss") or by both ("loss+"). The weights then multiply the
    gradients as they were.
    """

    def __init__(self, num_tasks: int, normalize: Literal["none", "l2", "loss", "loss+"]) -> None:
        super().__init__(num_tasks)
        self.normalize = normalize

    def weigh(self, losses: Tensor, jacobian: Jacobian, tasks: Tensor) -> Tensor:
        products = jacobian.gramian()
        if self.normalize.startswith("loss"):
            scale = losses.detach().to(products)
        else:
            scale = products.new_ones(len(products))
        if self.normalize in ("l2", "loss+"):
            scale = scale * products.diagonal().clamp(min=0).sqrt()
        scale = scale.where(
            scale > 0, 1
        )  # What is zero stays zero, and a loss below 0 is no scale.
        return solved(leaving_out_zeros(shortest), products / scale[:, None] / scale)


class MGDASpec(GradientWeightingSpec):
    """The shortest convex combination of the gradients.

    `normalize` scales the gradients before the search for weights.

    Example: `weighting: {name: mgda, normalize: l2}`
    """

    name: Literal["mgda"] = "mgda"
    helps: ClassVar[str] = (
        "no task may get worse; follows the smallest gradient, so beware of tasks that are done"
    )
    normalize: Literal["none", "l2", "loss", "loss+"] = "none"

    def build(self, tasks: Sequence[Task]) -> MGDA:
        return MGDA(len(tasks), self.normalize)
