"""Nearest points of cones and hulls against enumeration of all faces; factors and cosines."""

import itertools

import numpy as np
import pytest
import torch

from raymtl.types import DivergedError
from raymtl.weighting.gramian import (
    cosines,
    equal_projections,
    factor,
    in_cone,
    in_hull,
    leaving_out_zeros,
    solved,
)


def faces(size: int) -> list[list[int]]:
    return [
        list(face)
        for number in range(1, size + 1)
        for face in itertools.combinations(range(size), number)
    ]


@pytest.mark.parametrize("seed", range(20))
def test_in_cone_finds_the_nearest_point(seed: int) -> None:
    generator = np.random.default_rng(seed)
    columns, target = generator.standard_normal((5, 4)), generator.standard_normal(5)
    nearest = np.zeros(5)
    for face in faces(4):
        weights = np.linalg.lstsq(columns[:, face], target, rcond=None)[0]
        point = columns[:, face] @ weights
        if (weights >= 0).all() and np.linalg.norm(point - target) < np.linalg.norm(
            nearest - target
        ):
            nearest = point
    weights = in_cone(columns, target, "test")
    assert (weights >= 0).all()
    np.testing.assert_allclose(columns @ weights, nearest, atol=1e-12)


@pytest.mark.parametrize("seed", range(20))
def test_in_hull_finds_the_shortest_point(seed: int) -> None:
    """The shortest point of a face's plane, where its weights are positive."""
    generator = np.random.default_rng(seed)
    columns = generator.standard_normal((5, 4)) * np.array([1.0, 100.0, 0.01, 1.0]) + (seed % 3)
    shortest = columns[:, np.linalg.norm(columns, axis=0).argmin()]
    for face in faces(4):
        weights = np.linalg.solve(columns[:, face].T @ columns[:, face], np.ones(len(face)))
        point = columns[:, face] @ (weights / weights.sum())
        if (weights / weights.sum() >= 0).all() and np.linalg.norm(point) < np.linalg.norm(
            shortest
        ):
            shortest = point
    weights = in_hull(columns, "test")
    assert (weights >= 0).all() and weights.sum() == pytest.approx(1)
    np.testing.assert_allclose(
        columns @ weights, shortest, atol=1e-10 * float(np.linalg.norm(shortest))
    )


@pytest.mark.parametrize("unit", [1e-8, 1e8])
def test_in_hull_knows_no_unit_of_length(unit: float) -> None:
    columns = np.random.default_rng(0).standard_normal((5, 4))
    np.testing.assert_allclose(
        in_hull(unit * columns, "test"), in_hull(columns, "test"), rtol=1e-9, atol=1e-12
    )


def test_zero_columns_share_the_hulls_weight() -> None:
    assert in_hull(np.array([[1.0, 0.0, 0.0], [2.0, 0.0, 0.0]]), "test").tolist() == [0.0, 0.5, 0.5]


def test_factor_keeps_the_digits_of_short_gradients() -> None:
    """Its columns have the inner products of the gradients."""
    rows = np.random.default_rng(0).standard_normal((4, 6)) * np.array(
        [[1.0], [1e6], [1e-6], [1e3]]
    )
    columns, norms = factor(rows @ rows.T), np.linalg.norm(rows, axis=1)
    np.testing.assert_allclose(
        columns.T @ columns / norms / norms[:, None],
        rows @ rows.T / norms / norms[:, None],
        atol=1e-14,
    )
    np.testing.assert_allclose(np.linalg.norm(columns, axis=0), norms, rtol=1e-13)


def test_a_zero_gradient_has_no_cosines() -> None:
    """Also where its square has underflown but its products have not."""
    of_units, norms = cosines(np.array([[4.0, 1e-200], [1e-200, 0.0]]))
    assert of_units.tolist() == [[1, 0], [0, 0]] and norms.tolist() == [2, 0]


def test_dependent_gradients_have_equal_projections() -> None:
    """Four vectors on a cone around an axis, in three dimensions; no three on a line."""
    angles = np.array([0.1, 1.3, 3.0, 4.4])
    rows = np.stack([np.cos(angles), np.sin(angles), np.ones(4)], 1) * np.array(
        [[1.0], [2.0], [3.0], [4.0]]
    )
    weights = equal_projections(rows @ rows.T, 4 * np.finfo(float).eps)
    np.testing.assert_allclose(rows @ (weights @ rows) / np.linalg.norm(rows, axis=1), 1)
    np.testing.assert_allclose(weights @ rows / np.sqrt(2), [0, 0, 1], atol=1e-12)


def test_opposite_gradients_have_no_equal_projections() -> None:
    rows = np.array([[3.0, 4.0], [-6.0, -8.0]])
    assert equal_projections(rows @ rows.T, 1e-15).tolist() == [0, 0]


def test_zeros_are_left_out_and_weigh_1() -> None:
    seen = []

    def solve(products: np.ndarray, rounding: float) -> np.ndarray:
        seen.append(products)
        return np.array([5.0, 6.0])

    weights = leaving_out_zeros(solve)(
        np.array([[1.0, 0.0, 2.0], [0.0, 0.0, 0.0], [2.0, 0.0, 9.0]]), 0.0
    )
    assert weights.tolist() == [5, 1, 6] and seen[0].tolist() == [[1, 2], [2, 9]]
    assert leaving_out_zeros(solve)(np.zeros((2, 2)), 0.0).tolist() == [1, 1]


def test_solved_knows_the_rounding_of_its_precision() -> None:
    told: list[float] = []

    def row_sums(products: np.ndarray, rounding: float) -> np.ndarray:
        told.append(rounding)
        sums: np.ndarray = products.sum(1)
        return sums

    for dtype in (torch.float32, torch.float64):
        weights = solved(row_sums, torch.ones(4, 4, dtype=dtype))
        assert weights.dtype == dtype and weights.tolist() == [4] * 4
    assert told == [4 * 2.0**-23, 4 * 2.0**-52]


def test_solved_refuses_what_is_not_finite() -> None:
    with pytest.raises(DivergedError, match="gradient"):
        solved(
            lambda products, rounding: products[0],
            torch.tensor([[1.0, torch.nan], [torch.nan, 1.0]]),
        )


def test_a_failed_solver_names_method_and_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def gives_up(columns: np.ndarray, target: np.ndarray, maxiter: int) -> None:
        raise RuntimeError("Maximum number of iterations reached.")

    monkeypatch.setattr("scipy.optimize.nnls", gives_up)
    with pytest.raises(RuntimeError, match=r"upgrad: .* 3 tasks.* weighting\.name"):
        in_cone(np.eye(3), np.ones(3), "upgrad")
