"""Functions of the Gramian in float64 on the CPU: factor, cosines, nearest points.

The nearest point of a cone or a hull is a nonnegative least-squares problem. An active-set method
solves it to rounding (Lawson & Hanson, 1974).
"""

from abc import abstractmethod
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raymtl.types import DivergedError
from raymtl.weighting.base import GradientWeighting, Jacobian

Array = NDArray[np.float64]
Solve = Callable[[Array, float], Array]
"""(Gramian [K, K], rounding) -> weights [K].

Eigenvalues below `rounding` times the largest are noise.
"""


def solved(solve: Solve, gramian: Tensor) -> Tensor:
    """The weights that `solve` finds, in the precision and on the device of the Gramian."""
    products = gramian.detach().to("cpu", torch.float64).numpy()
    if not np.isfinite(products).all():
        raise DivergedError("the gradient of a task's query loss is not finite")
    rounding = len(gramian) * torch.finfo(gramian.dtype).eps
    return torch.from_numpy(solve(products, rounding)).to(gramian)


class GramianWeighting(GradientWeighting):
    """A weighting that is a function of the Gramian alone."""

    @abstractmethod
    def solve(self, products: Array, rounding: float) -> Array:
        """Weights [K] from the Gramian [K, K]; see `Solve`."""

    def weigh(self, losses: Tensor, jacobian: Jacobian, tasks: Tensor) -> Tensor:
        return solved(self.solve, jacobian.gramian())


def leaving_out_zeros(solve: Solve) -> Solve:
    """`solve` for the gradients that are not zero.

    Gradients that are zero get the weight 1, which does not change the sum.
    """

    def of_all(products: Array, rounding: float) -> Array:
        present = products.diagonal() > 0
        weights = np.ones(len(products))
        if present.any():
            weights[present] = solve(products[np.ix_(present, present)], rounding)
        return weights

    return of_all


def cosines(products: Array) -> tuple[Array, Array]:
    """Cosines [K, K] between the gradients, and their norms [K].

    The cosine with a gradient that is zero is 0.
    """
    norms = np.sqrt(products.diagonal().clip(min=0))
    inverse = np.divide(1, norms, out=np.zeros_like(norms), where=norms > 0)
    return inverse[:, None] * products * inverse, norms


def factor(products: Array) -> Array:
    """Columns [K, K] whose inner products are those of the gradients.

    The factor is that of the cosines, scaled, so that a short gradient keeps its digits beside long
    ones.
    """
    of_units, norms = cosines(products)
    values, vectors = np.linalg.eigh(of_units)
    columns: Array = np.sqrt(values.clip(min=0))[:, None] * vectors.T * norms
    return columns


def spectrum(products: Array, rounding: float) -> tuple[Array, Array]:
    """Eigenvalues [rank], ascending, and eigenvectors [K, rank].

    Those that are zero up to rounding are left out.
    """
    values, vectors = np.linalg.eigh(products)
    sure = values > rounding * values.max()
    return values[sure], vectors[:, sure]


def equal_projections(products: Array, rounding: float) -> Array:
    """Weights [K] of the shortest vector whose product with every unit gradient is 1.

    For linearly dependent gradients it is the vector whose products come closest to 1. The weights
    are 0 where that vector is 0, as for opposite gradients. No gradient may be zero.
    """
    of_units, norms = cosines(products)
    values, vectors = spectrum(of_units, rounding)
    ones = vectors.sum(0)
    if ones @ ones <= rounding * len(products):
        return np.zeros(len(products))
    weights: Array = vectors @ (ones / values) / norms
    return weights


def in_cone(columns: Array, target: Array, method: str) -> Array:
    """The weights x >= 0 [K] at which columns @ x comes nearest to `target`."""
    # Here and not above: every process imports this file, and SciPy takes it a third of a second.
    from scipy.optimize import nnls

    try:
        weights: Array = nnls(columns, target, maxiter=100 * columns.shape[1])[0]
    except RuntimeError as error:
        raise RuntimeError(
            f"{method}: the active-set solver did not converge on the gradients of "
            f"{columns.shape[1]} tasks. Choose another weighting.name."
        ) from error
    return weights


def in_hull(columns: Array, method: str) -> Array:
    """The weights [K] on the simplex at which columns @ w is shortest.

    Where some columns are zero, they share the weight equally.
    """
    norms = np.linalg.norm(columns, axis=0)
    if not norms.all():
        on_zeros: Array = (norms == 0) / (norms == 0).sum()
        return on_zeros
    # |columns x|^2 + (sum x - 1)^2 is least on the ray of the shortest point, whatever the unit of
    # length. With the shortest column as unit, sum x is between 1/2 and 1.
    extended = np.vstack([columns / norms.min(), np.ones(len(norms))])
    weights = in_cone(extended, np.append(np.zeros(len(columns)), 1.0), method)
    on_simplex: Array = weights / weights.sum()
    return on_simplex
