"""Moments of numbers: exact, so that blocks and their order change no bit."""

import math
from fractions import Fraction

import numpy as np
import pytest

from raymtl.data.tables.exact_moments import TILE, Moments, moments_of, moments_of_rows

RNG = np.random.default_rng(0)
SPREAD = np.ldexp(RNG.choice([-1.0, 1.0], 300), RNG.integers(-1070, 996, 300))
KINDS = {
    "normal": RNG.normal(size=TILE + 1000),
    "far from 0": 1e9 + RNG.normal(size=500),
    "whole": RNG.integers(-(2**53), 2**53, 400).astype(np.float64),
    "of many magnitudes": RNG.normal(size=300) * SPREAD,
    "subnormal": np.array([5e-324, -1e-320, 3e-310, 0.0]),
    "largest": np.array([1e300, -1e300, 1.0, 5e-324]),
    "powers of 2": np.ldexp(1.0, np.arange(-40, 41)),
    "alike": np.full(1000, 0.1),
    "one": np.array([-0.3]),
    "zeros": np.zeros(3),
}


def oracle(values: np.ndarray) -> tuple[float, Fraction]:
    """The mean, rounded once, and the exact variance."""
    exact = [Fraction(value) for value in values.tolist()]
    mean = sum(exact, Fraction()) / len(exact)
    return float(mean), sum(((value - mean) ** 2 for value in exact), Fraction()) / len(exact)


@pytest.mark.parametrize("kind", KINDS)
def test_mean_and_std_are_rounded_once(kind: str) -> None:
    values = KINDS[kind]
    moments = moments_of(values)
    mean, variance = oracle(values)
    assert moments.count == len(values)
    assert moments.mean == mean
    if variance == 0:
        assert moments.std == 0
        return
    # No other float is nearer to the root: the variance is between the squares of the middles.
    std = Fraction(moments.std)
    below = Fraction(math.nextafter(moments.std, 0)) + std
    above = Fraction(math.nextafter(moments.std, math.inf)) + std
    assert below**2 <= 4 * variance <= above**2


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_in_any_order_give_equal_bits(kind: str) -> None:
    values = KINDS[kind]
    together = moments_of(values)
    for seed in range(5):
        rng = np.random.default_rng(seed)
        cuts = np.sort(rng.integers(0, len(values) + 1, 7))
        blocks = [moments_of(block) for block in np.split(rng.permutation(values), cuts)]
        while len(blocks) > 1:
            first, second = rng.choice(len(blocks), 2, replace=False)
            merged = blocks[first] + blocks[second]
            blocks = [block for i, block in enumerate(blocks) if i not in (first, second)]
            blocks.append(merged)
        (merged,) = blocks
        assert (merged.count, merged.mean, merged.std) == (
            together.count,
            together.mean,
            together.std,
        )


def test_columns_do_not_touch_each_other() -> None:
    """Nor do missing numbers count."""
    values = np.stack([RNG.permutation(KINDS["of many magnitudes"]), RNG.normal(size=300)] * 5)
    values[RNG.random(values.shape) < 0.1] = np.nan
    values[5] = np.nan
    together = moments_of_rows(values)
    for row, moments in zip(values, together, strict=True):
        alone = moments_of(row[~np.isnan(row)])
        assert moments.count == alone.count
        assert moments.total.plus(alone.total._replace(integer=-alone.total.integer)).integer == 0
        if moments.count:
            assert (moments.mean, moments.std) == (alone.mean, alone.std)
    assert together[5] == Moments(0, together[5].total, together[5].squares)


def test_sums_of_many_tiles_do_not_overflow() -> None:
    """The largest sums that 64-bit whole numbers have to hold, and one tile more."""
    values = np.full(129 * TILE, 1.0)
    values[0] = -1.0
    moments = moments_of(values)
    assert moments.total.at(moments.total.exponent) == (len(values) - 2) << -moments.total.exponent
    squares = moments.squares
    assert squares.integer == len(values) << -squares.exponent


def test_infinite_numbers_do_not_count() -> None:
    assert moments_of(np.array([1.0, np.inf, np.nan, 3.0])).mean == 2


def test_rounding_alone_is_no_spread() -> None:
    assert moments_of(np.array([0.3, 0.1 + 0.2])).std == 0
