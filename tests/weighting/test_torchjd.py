"""Every weighting of gradients that TorchJD has, against it, on 60 Jacobians each.

What agrees is the combination of the gradients, to 1e-6 of its length. Where TorchJD iterates towards a solution that
is ours exactly, ours meets the conditions of optimality to 1e-8 and is no worse than TorchJD's.
"""

from collections.abc import Callable, Iterator
from typing import Any

import cvxpy
import numpy as np
import pytest
import torch
import torchjd.aggregation as theirs
from scipy.optimize import lsq_linear
from torch import Tensor
from torchjd.aggregation._nash_mtl import _NashMTLWeighting
from torchjd.linalg import DualConeProjector

from raymtl.weighting import (
    AlignedMTLSpec,
    CAGradSpec,
    ConFIGSpec,
    DualProjSpec,
    FairGradSpec,
    GradDropSpec,
    GradVacSpec,
    IMTLGSpec,
    MGDASpec,
    NashMTLSpec,
    PCGradSpec,
    SDMGradSpec,
    UPGradSpec,
)
from raymtl.weighting.base import WeightingSpecBase
from raymtl.weighting.graddrop import draw_chances
from raymtl.weighting.pcgrad import draw_order
from tests.weighting import Rows, regressions, weigh

pytestmark = pytest.mark.usefixtures("float64")

TASKS = regressions(f"task_{index}" for index in range(40))
NUMBER = 60


def jacobian(seed: int) -> Tensor:
    """Rows [K, P], K from 2 to 40: of a condition number up to 1e4, of norms over four decades, or in conflict."""
    generator = torch.Generator().manual_seed(seed)
    size = 40 if seed % 40 == 0 else int(torch.randint(2, 11, (), generator=generator))
    width = size + int(torch.randint(0, 21, (), generator=generator))
    rows = torch.randn(size, width, generator=generator)
    kind = seed % 3
    if kind == 0:
        left, _, right = torch.linalg.svd(rows, full_matrices=False)
        lowest = -4 * torch.rand((), generator=generator)
        conditioned: Tensor = left * torch.logspace(0, float(lowest), size) @ right
        return conditioned
    if kind == 1:
        return rows * 10 ** (4 * torch.rand(size, 1, generator=generator) - 2)
    # Every row is nearly the opposite of the one before.
    signs = torch.tensor([1.0, -1.0]).repeat(size)[:size, None]
    return signs * (rows[0] + 0.3 * rows.cumsum(0))


def jacobians() -> Iterator[Tensor]:
    return (jacobian(seed) for seed in range(NUMBER))


def weights_of(spec: WeightingSpecBase, rows: Tensor) -> Tensor:
    return weigh(spec.build(TASKS[: len(rows)]), torch.ones(len(rows)), Rows(rows))


def distance(ours: Tensor, expected: Tensor) -> float:
    """Of two combinations of gradients, relative to the length of the expected one."""
    return float((ours - expected).norm() / expected.norm())


class ActiveSet(DualConeProjector):
    """TorchJD's projector without its regularisation, by scipy's bounded-variable least squares, not by quadprog."""

    def __call__(self, U: Tensor, G: Tensor) -> Tensor:
        root = torch.linalg.cholesky(G, upper=True).numpy()
        zero, tolerance = np.zeros(len(G)), 1e-15
        solutions = [
            lsq_linear(root, zero, (lower, np.inf), method="bvls", tol=tolerance).x
            for lower in U.reshape(-1, len(G))
        ]
        return torch.tensor(np.array(solutions)).view_as(U)


EXACT: dict[
    str, tuple[WeightingSpecBase, Callable[[], theirs.Aggregator], Callable[[int], float]]
] = {
    "aligned_mtl_min": (AlignedMTLSpec(), theirs.AlignedMTL, float),
    "aligned_mtl_median": (
        AlignedMTLSpec(scale="median"),
        lambda: theirs.AlignedMTL(scale_mode="median"),
        float,
    ),
    "aligned_mtl_rmse": (
        AlignedMTLSpec(scale="rmse"),
        lambda: theirs.AlignedMTL(scale_mode="rmse"),
        float,
    ),
    "config": (ConFIGSpec(), theirs.ConFIG, lambda size: 1.0),
    "dualproj": (DualProjSpec(), lambda: theirs.DualProj(projector=ActiveSet()), float),
    "upgrad": (UPGradSpec(), lambda: theirs.UPGrad(projector=ActiveSet()), float),
}


@pytest.mark.parametrize("name", EXACT)
def test_combination_is_torchjds_in_our_scale(name: str) -> None:
    spec, aggregator, scale = EXACT[name]
    for rows in jacobians():
        assert distance(weights_of(spec, rows) @ rows, scale(len(rows)) * aggregator()(rows)) < 1e-6


def test_imtl_g_is_torchjds_at_sum_one() -> None:
    for rows in jacobians():
        weights = weights_of(IMTLGSpec(), rows)
        assert weights.abs().sum() == pytest.approx(len(rows))
        assert distance(weights @ rows / weights.sum(), theirs.IMTLG()(rows)) < 1e-6


def order_of_torchjd(order: np.ndarray, own: bool) -> Iterator[Tensor]:
    """The permutations that make TorchJD take the others in our order: of all tasks, or of all but its `own`."""
    for index, others in enumerate(order):
        yield torch.tensor([index, *others]) if own else torch.tensor(others - (others > index))


def test_pcgrad_is_torchjds_in_the_same_order(monkeypatch: pytest.MonkeyPatch) -> None:
    for rows in jacobians():
        orders = order_of_torchjd(draw_order(len(rows), 0), own=True)
        monkeypatch.setattr(torch, "randperm", lambda number, orders=orders: next(orders))
        assert distance(weights_of(PCGradSpec(), rows) @ rows, theirs.PCGrad()(rows)) < 1e-6


def test_gradvac_is_torchjds_over_three_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In the same order of tasks."""
    for seed in range(NUMBER):
        rows = jacobian(seed)
        module, oracle = (
            GradVacSpec(beta=0.4).build(TASKS[: len(rows)]),
            theirs.GradVac(beta=0.4, eps=0.0),
        )
        for step in range(3 if len(rows) < 40 else 2):
            orders = order_of_torchjd(draw_order(len(rows), step), own=False)
            monkeypatch.setattr(torch, "randperm", lambda number, orders=orders: next(orders))
            assert distance(module(torch.ones(len(rows)), Rows(rows)) @ rows, oracle(rows)) < 1e-6
            rows = (
                rows
                + 0.3
                * rows.norm(dim=1, keepdim=True)
                * torch.randn(rows.shape)
                / rows.shape[1] ** 0.5
            )


@pytest.mark.parametrize("leak", [0.0, 0.3])
def test_graddrop_is_torchjds_with_the_same_chances(
    leak: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    chances = {rows.shape[1]: draw_chances(rows.shape[1], 0) for rows in jacobians()}
    expected = []
    for rows in jacobians():
        oracle = theirs.GradDrop(leak=torch.full((len(rows),), leak))
        monkeypatch.setattr(torch, "rand", lambda shape, dtype, device: chances[shape[0]].to(dtype))
        expected.append(oracle(rows))
        monkeypatch.undo()
    for rows, joint in zip(jacobians(), expected, strict=True):
        ours = Rows(rows)
        weights = GradDropSpec(leak=leak).build(TASKS[: len(rows)])(torch.ones(len(rows)), ours)
        assert distance(weights @ ours.matrix, joint) < 1e-6


def test_mgda_is_optimal_beside_torchjd() -> None:
    """TorchJD's Frank-Wolfe steps converge as 1 / steps; of two tasks the first step is exact."""
    oracle = theirs.MGDA(epsilon=1e-12, max_iters=100)
    for rows in jacobians():
        weights, expected = (
            weights_of(MGDASpec(), rows) / len(rows),
            oracle.gramian_weighting(rows @ rows.T),
        )
        joint = weights @ rows
        excess = (rows @ joint - joint @ joint) / (rows.norm(dim=1).max() * joint.norm())
        assert (weights >= 0).all() and weights.sum() == pytest.approx(1)
        assert excess.min() > -1e-8 and (weights * excess).abs().max() < 1e-8
        assert joint.norm() <= (expected @ rows).norm() * (1 + 1e-10)
        if len(rows) == 2:
            assert distance(joint, expected @ rows) < 1e-6


def test_sdmgrad_is_optimal_beside_torchjd() -> None:
    """TorchJD takes projected steps; its rate is set to what the Gramian's largest eigenvalue allows."""
    for rows in jacobians():
        products, size, pull = rows @ rows.T, len(rows), 0.3
        rate = products.diagonal().sqrt().mean() ** 2 / torch.linalg.eigvalsh(products)[-1]
        oracle = theirs.SDMGradWeighting(lr=float(rate), momentum=0.9, n_iter=100, lambda_=pull)
        weights, expected = weights_of(SDMGradSpec(pull=pull), rows) / size, oracle(products)
        joint = weights @ rows
        on_simplex = (1 + pull) * weights - pull / size
        excess = (rows @ joint - on_simplex @ (rows @ joint)) / (
            rows.norm(dim=1).max() * joint.norm()
        )
        assert on_simplex.min() > -1e-12 and on_simplex.sum() == pytest.approx(1)
        assert excess.min() > -1e-8 and (on_simplex * excess).abs().max() < 1e-8
        assert joint.norm() <= (expected @ rows).norm() * (1 + 1e-10)


@pytest.mark.parametrize("c", [0.2, 0.5, 0.9])
def test_cagrad_is_optimal_beside_torchjd(c: float) -> None:
    """TorchJD solves a cone program to 8 digits of the objective, which are 4 of the direction."""
    oracle = theirs.CAGrad(c=c, norm_eps=0.0)
    for rows in jacobians():
        size, mean = len(rows), rows.mean(0)
        weights = weights_of(CAGradSpec(c=c), rows) * (1 + c) / size
        joint, expected = weights @ rows, oracle(rows)
        radius, longest = c * mean.norm(), rows.norm(dim=1).max()
        assert float((joint - mean).norm()) == pytest.approx(float(radius), rel=1e-8)
        # The multipliers: positive only where the improvement is the least one.
        multipliers = weights - 1 / size
        gains = rows @ joint
        assert (multipliers > -1e-12).all()
        assert (
            multipliers @ (gains - gains.min())
        ) / multipliers.sum() < 1e-8 * longest * joint.norm()
        assert gains.min() >= (rows @ expected).min() - 1e-6 * longest * joint.norm()
        assert distance(joint, expected) < 1e-3


def misfit(weights: Tensor, products: Tensor, alpha: float) -> float:
    """How far from (G w)_t = w_t^(-1/alpha), relative to the terms that G w is the sum of."""
    return float(
        ((products @ weights - weights ** (-1 / alpha)) / (products.abs() @ weights)).abs().max()
    )


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [0.5, 2.0])
def test_fairgrad_solves_its_equation(alpha: float) -> None:
    """It agrees with TorchJD where that solves it too."""
    agreements = 0
    for rows in jacobians():
        products = rows @ rows.T
        weights, expected = (
            weights_of(FairGradSpec(alpha=alpha), rows),
            theirs.FairGrad(alpha).gramian_weighting(products),
        )
        assert misfit(weights, products, alpha) < 1e-8
        solved = misfit(expected, products, alpha) < 1e-12
        agreements += solved
        assert not solved or distance(weights @ rows, expected @ rows) < 1e-6
    assert agreements > NUMBER / 4


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_nash_mtl_solves_its_equation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """TorchJD takes convex-concave steps by ECOS, here by Clarabel; with more than two tasks from our solution on."""
    solve: Callable[..., Any] = cvxpy.Problem.solve

    def solve_alone(problem: cvxpy.Problem, solver: str, **rest: Any) -> Any:
        return solve(problem, solver=solver)

    monkeypatch.setattr(cvxpy, "ECOS", cvxpy.CLARABEL, raising=False)
    monkeypatch.setattr(cvxpy.Problem, "solve", solve_alone)
    monkeypatch.setattr(_NashMTLWeighting, "_REQUIRED_DEPS", ["numpy", "cvxpy"])
    agreements = 0
    for rows in jacobians():
        products = rows @ rows.T
        weights = weights_of(NashMTLSpec(), rows)
        steps = 5 if len(rows) == 2 else 1
        oracle = _NashMTLWeighting(
            len(rows), max_norm=0.0, update_weights_every=1, optim_niter=steps
        )
        if len(rows) > 2:
            oracle.prvs_alpha = weights.numpy()
        expected = oracle(rows)

        def objective(w: Tensor, rows: Tensor = rows) -> float:
            return float((w @ rows).square().sum() / 2 - w.log().sum())

        assert misfit(weights, products, 1.0) < 1e-8
        assert objective(weights) <= objective(expected) + 1e-9
        solved = bool(((expected * (products @ expected) - 1).abs() < 1e-8).all())
        agreements += solved
        assert not solved or distance(weights @ rows, expected @ rows) < 1e-6
    assert agreements > NUMBER / 6
