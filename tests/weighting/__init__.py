"""One file a weighting; here what stands in for the gradients of the outer step."""

from collections.abc import Callable

from torch import Tensor

from raymtl.weighting import GradientWeighting, Weighting


class Rows:
    """A Jacobian that is given: `matrix` [K, P]."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix

    def gramian(self) -> Tensor:
        return self.matrix @ self.matrix.T

    def rows(self) -> Tensor:
        return self.matrix

    def change(self, function: Callable[[Tensor], Tensor]) -> None:
        self.matrix = function(self.matrix)


def weigh(module: Weighting, losses: Tensor, jacobian: Rows, tasks: Tensor | None = None) -> Tensor:
    """What the weighting makes of these losses or, if it weighs gradients, of these rows."""
    if isinstance(module, GradientWeighting):
        weights: Tensor = module(losses, jacobian, tasks)
    else:
        weights = module(losses, tasks)
    return weights
