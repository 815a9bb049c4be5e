"""Exact sums of values and of their squares, so that a mean and a standard deviation depend on the
values alone.

The sums of some blocks add up to the same numbers in whatever order they are added, on any number
of machines. A value is cut into slices of 20 bits by the error-free transformation of Rump, Ogita
and Oishi (Accurate Floating-Point Summation, SIAM J. Sci. Comput. 31, 2008):

    q = (M + x) - M,  x = q + (x - q),  where M = 1.5 * 2^52 units of the slice.

Sums of products of two slices stay below 2^53 over 2^13 values, so float64 does not round them.
Python's whole numbers hold the sums of more values.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np

SLICE_BITS = 20
MOST_SLICES = 4
"""All bits of a value are in these slices if it is at least 2^-27 of the largest in its tile."""
TILE = 1 << 13
"""Values of a column that are cut together."""
MOST_TILES = 1 << 7
"""Whose sums are added up as 64-bit whole numbers."""
ROUNDING = 1e-12
"""Values whose relative spread is smaller differ by rounding alone."""


class Dyadic(NamedTuple):
    """The number `integer` * 2^`exponent`."""

    integer: int = 0
    exponent: int = 0

    def plus(self, other: "Dyadic") -> "Dyadic":
        exponent = min(self.exponent, other.exponent)
        return Dyadic(self.at(exponent) + other.at(exponent), exponent)

    def at(self, exponent: int) -> int:
        """The number in units of 2^`exponent`, which is at most its own exponent."""
        return self.integer << (self.exponent - exponent)


ZERO = Dyadic()


@dataclass(frozen=True)
class Moments:
    """How many finite numbers there are, their sum and the sum of their squares."""

    count: int = 0
    total: Dyadic = ZERO
    squares: Dyadic = ZERO

    def __add__(self, other: Self) -> "Moments":
        return Moments(
            self.count + other.count,
            self.total.plus(other.total),
            self.squares.plus(other.squares),
        )

    @property
    def mean(self) -> float:
        """The float64 nearest to the exact mean; 0 of no numbers."""
        return _ratio(self.total.integer, max(1, self.count), self.total.exponent)

    @property
    def std(self) -> float:
        """The standard deviation, rounded once; 0 where rounding alone makes the values differ."""
        exponent = min(self.total.exponent, self.squares.exponent // 2)
        total, squares = self.total.at(exponent), self.squares.at(2 * exponent)
        scatter = self.count * squares - total * total  # count^2 times the variance
        # Two bits more than the square of a float has, and a last one for what is cut off.
        shift = max(0, 64 + self.count.bit_length() - scatter.bit_length() // 2)
        root = math.isqrt(scatter << 2 * shift)
        is_cut = root * root != scatter << 2 * shift
        std = _ratio(2 * root + is_cut, max(1, self.count), exponent - shift - 1)
        if std <= ROUNDING * abs(self.mean):
            return 0.0
        return std


def _ratio(numerator: int, denominator: int, exponent: int) -> float:
    """The float64 nearest to numerator / denominator * 2^exponent."""
    if exponent < 0:
        return numerator / (denominator << -exponent)
    return (numerator << exponent) / denominator


def moments_of_rows(values: np.ndarray) -> list[Moments]:
    """The moments of each row of `values` [C, N] float64, which are finite or nan."""
    num_columns, num_values = values.shape
    columns = max(2, 2 * TILE // max(1, num_values))
    moments: list[Moments] = []
    for first in range(0, num_columns, columns):
        some = values[first : first + columns]
        sums = _of_stretch(some[:, : MOST_TILES * TILE])
        for start in range(MOST_TILES * TILE, num_values, MOST_TILES * TILE):
            more = _of_stretch(some[:, start : start + MOST_TILES * TILE])
            sums = [one + other for one, other in zip(sums, more, strict=True)]
        moments += sums
    return moments


def moments_of(values: np.ndarray) -> Moments:
    """The moments of all the numbers in an array that are finite."""
    flat = np.asarray(values, np.float64).ravel()
    finite = np.isfinite(flat)
    if not finite.all():
        flat = flat[finite]
    return moments_of_rows(flat[None])[0]


def _of_stretch(values: np.ndarray) -> list[Moments]:
    """The moments of each row [C, N], N at most MOST_TILES * TILE."""
    num_columns, num_values = values.shape
    largest = np.abs(values).max(1, initial=0.0)
    counts = np.full(num_columns, num_values)
    if np.isnan(largest).any():
        counts -= np.isnan(values).sum(1)
        values = np.where(np.isnan(values), 0.0, values)
        largest = np.abs(values).max(1, initial=0.0)
    exponents = np.frexp(largest)[1]
    products = np.zeros((MOST_SLICES + 1, MOST_SLICES + 1, num_columns), np.int64)
    smaller: dict[int, list[np.ndarray]] = {}
    for start in range(0, num_values, TILE):
        tile = values[:, start : start + TILE]
        cut = _cut(tile, exponents)
        products += _products(cut.slices, num_columns)
        if cut.left is not None:
            for row in np.flatnonzero(cut.left.any(1)).tolist():
                smaller.setdefault(row, []).append(tile[row, cut.left[row]])
    totals, squares = products[0].T, _by_place(products[1:, 1:]).T
    rows = zip(counts.tolist(), exponents.tolist(), totals.tolist(), squares.tolist(), strict=True)
    moments = [
        Moments(count, _dyadic(total, exponent), _dyadic(square, 2 * exponent))
        for count, exponent, total, square in rows
    ]
    for row, parts in smaller.items():
        (rest,) = _of_stretch(np.concatenate(parts)[None])
        moments[row] += Moments(0, rest.total, rest.squares)  # which are counted already
    return moments


class _Cut(NamedTuple):
    """The values of a tile [C, N], divided by powers of 2 so that none is above 1."""

    slices: list[np.ndarray]
    left: np.ndarray | None
    """The values that have bits below the last slice; their slices are 0. None without any."""


def _cut(tile: np.ndarray, exponents: np.ndarray) -> _Cut:
    half = exponents // 2  # 2^-exponent alone could be too large for a float
    rest = tile * np.ldexp(1.0, -half)[:, None]
    rest *= np.ldexp(1.0, half - exponents)[:, None]
    is_whole = np.count_nonzero(rest) == np.count_nonzero(tile)
    slices: list[np.ndarray] = []
    while len(slices) < MOST_SLICES and rest.any():
        anchor = 1.5 * 2.0 ** (52 - SLICE_BITS * (len(slices) + 1))
        piece = rest + anchor
        piece -= anchor
        rest -= piece
        slices.append(piece)
    if is_whole and not rest.any():
        return _Cut(slices, None)
    left = tile != 0
    for piece in slices:
        left &= piece == 0  # too small for a float when it was divided
    left |= rest != 0
    for piece in slices:
        piece[left] = 0
    return _Cut(slices, left)


_PLACES = np.arange(MOST_SLICES + 1)
_BITS = SLICE_BITS * np.add.outer(_PLACES, _PLACES)[..., None]


def _products(slices: list[np.ndarray], num_columns: int) -> np.ndarray:
    """Sums of products of two slices, [1 + S, 1 + S, C] int64; number 0 is 1 in place of a slice.

    Of two different slices the sum is at [i, j] alone, i < j.
    """
    sums = np.zeros((MOST_SLICES + 1, MOST_SLICES + 1, num_columns))
    for i, one in enumerate(slices, 1):
        one.sum(1, out=sums[0, i])
        for j, other in enumerate(slices[i - 1 :], i):
            np.vecdot(one, other, out=sums[i, j])
    whole: np.ndarray = np.ldexp(sums, _BITS).astype(np.int64)
    return whole


def _by_place(products: np.ndarray) -> np.ndarray:
    """The sums of squares [1 + 2 S, C] by the place of their last bit, from [S, S, C]."""
    squares = np.zeros((2 * MOST_SLICES + 1, products.shape[-1]), np.int64)
    for i in range(MOST_SLICES):
        for j in range(i, MOST_SLICES):
            squares[i + j + 2] += products[i, j] << (i != j)
    return squares


def _dyadic(digits: list[int], exponent: int) -> Dyadic:
    """The sum of digits[k] * 2^(exponent - k * SLICE_BITS)."""
    integer = 0
    for digit in digits:
        integer = (integer << SLICE_BITS) + digit
    return Dyadic(integer, exponent - SLICE_BITS * (len(digits) - 1))
