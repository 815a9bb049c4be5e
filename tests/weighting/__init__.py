"""One file a weighting; here what stands in for the gradients of the outer step."""

from collections.abc import Callable, Iterable

from torch import Tensor

from raymtl.tasks import regression
from raymtl.types import Task
from raymtl.weighting import GradientWeighting, Weighting


def regressions(names: Iterable[str]) -> list[Task]:
    """Tasks that are alike, for weightings that see losses and gradients alone."""
    return [regression(name, 0.0, 1.0) for name in names]


ABC = regressions("abc")
ABCD = regressions("abcd")


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
