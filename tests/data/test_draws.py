"""The generator by counters: uniform, unbiased, and a function of an episode's own numbers."""

from collections.abc import Callable
from itertools import permutations

import numpy as np
import pytest
from scipy import stats

from raymtl.data.base import SPLITS
from raymtl.data.draws import Draws, alike
from raymtl.data.episodes import generators

DRAWN: dict[str, Callable[[Draws], np.ndarray]] = {
    "bits": lambda draws: draws.bits(3, 2),
    "uniform": lambda draws: draws.uniform(-1, 2, 4),
    "normal": lambda draws: draws.normal(4),
    "integers": lambda draws: draws.integers(7, 4),
    "coins": lambda draws: draws.coins(40),
    "choice of few": lambda draws: draws.choice(20, 16),
    "choice of many": lambda draws: draws.choice(1000, 100),
    "choice of its own": lambda draws: draws.choice(40 + draws.indices, 5),
    "split": lambda draws: draws.split(3).bits(2).reshape(-1, 3, 2),
}


def chi_squared(counts: np.ndarray) -> float:
    """The p-value of equal odds."""
    return float(stats.chisquare(counts).pvalue)


@pytest.mark.parametrize("kind", DRAWN)
def test_numbers_depend_on_their_episode_alone(kind: str) -> None:
    """Whichever other episodes are drawn, in any order, and after any number of draws."""
    draw = DRAWN[kind]
    every = generators(3, "val", 5, range(40))
    first, second = draw(every), draw(every)
    assert not np.array_equal(first, second)
    indices = [39, 4, 17]
    some = generators(3, "val", 5, indices)
    assert np.array_equal(draw(some), first[indices])
    assert np.array_equal(draw(some), second[indices])
    later = generators(3, "val", 5, range(40))
    draw(later)
    assert np.array_equal(draw(later[np.array(indices)]), second[indices])


def test_no_two_neighbours_share_a_word() -> None:
    """Of seeds, splits, steps, indices, draws and split generators."""
    words = []
    for seed in (0, 1, 2**40, 2**63 - 1):
        for split in SPLITS:
            for step in range(10):
                draws = generators(seed, split, step, range(30))
                words += [draws.bits(8), draws.bits(8), draws.split(2).bits(4)]
    every = np.concatenate([own.ravel() for own in words])
    assert len(np.unique(every)) == every.size == 4 * 3 * 10 * 30 * 24


def test_every_bit_is_a_fair_coin() -> None:
    """Over episodes, over steps and within an episode; a bit does not follow its neighbour's."""
    over_steps = [generators(0, "train", step, [0]).bits(1)[0] for step in range(2000)]
    for words in (
        generators(0, "train", 0, range(2000)).bits(1)[:, 0],
        np.concatenate(over_steps),
        generators(0, "train", 0, [0]).bits(2000)[0],
    ):
        bits = (words[:, None] >> np.arange(64, dtype=np.uint64) & np.uint64(1)).astype(int)
        deviations = (bits.mean(axis=0) - 0.5) * 2 * len(words) ** 0.5  # standard normal
        assert np.abs(deviations).max() < 4.5
        assert 0.001 < stats.chi2.sf((deviations**2).sum(), 64) < 0.999
        changes = (bits[1:] != bits[:-1]).mean()
        assert abs(changes - 0.5) * 2 * (bits.size - 64) ** 0.5 < 4.5


def test_uniform_numbers_fill_their_range_evenly() -> None:
    for drawn in (
        generators(1, "train", 0, range(500)).uniform(-5, 5, 200),
        np.stack([generators(1, "train", s, range(100)).uniform(-5, 5, 10) for s in range(100)]),
    ):
        assert drawn.min() >= -5 and drawn.max() < 5
        counts, _ = np.histogram(drawn, bins=100, range=(-5, 5))
        assert chi_squared(counts) > 1e-3


def test_normal_numbers_are_standard_normal() -> None:
    drawn = generators(2, "train", 0, range(200)).normal(100)
    assert stats.kstest(drawn.ravel(), "norm").pvalue > 1e-3
    neighbours = np.corrcoef(drawn[:-1].ravel(), drawn[1:].ravel())[0, 1]
    assert abs(neighbours) < 4.5 / drawn.size**0.5


@pytest.mark.parametrize("num", [2, 3, 10, 1000])
def test_integers_have_equal_odds(num: int) -> None:
    drawn = generators(3, "train", 0, range(1000)).integers(num, 100)
    assert chi_squared(np.bincount(drawn.ravel(), minlength=num)) > 1e-3
    assert drawn.min() == 0 and drawn.max() == num - 1


@pytest.mark.parametrize("one", [4, np.full(24_000, 4)])
def test_permutations_have_equal_odds(one: int | np.ndarray) -> None:
    drawn = generators(4, "train", 0, range(24_000)).choice(one, 4)
    found, counts = np.unique(drawn, axis=0, return_counts=True)
    assert {tuple(own) for own in found.tolist()} == set(permutations(range(4)))
    assert chi_squared(counts) > 1e-3


@pytest.mark.parametrize(("num", "size"), [(6, 2), (9, 1), (20, 2), (33, 4), (40, 2)])
def test_choices_have_equal_odds(num: int, size: int) -> None:
    """Where all are shuffled and where some are drawn: each place, and each ordered pair."""
    for one in (num, np.full(60_000, num)):
        drawn = generators(5, "train", 0, range(60_000)).choice(one, size)
        for place in range(size):
            assert chi_squared(np.bincount(drawn[:, place], minlength=num)) > 1e-3
        if size > 1:
            pairs = np.bincount(drawn[:, 0] * num + drawn[:, 1], minlength=num * num)
            differ = ~np.eye(num, dtype=bool).ravel()
            assert pairs[~differ].sum() == 0
            assert chi_squared(pairs[differ]) > 1e-3


@pytest.mark.parametrize(("num", "size"), [(16, 16), (100, 99), (1000, 120), (50_000, 32)])
def test_nothing_is_chosen_twice(num: int, size: int) -> None:
    draws = generators(6, "train", 0, range(200))
    for drawn in (draws.choice(num, size), draws.choice(num + np.arange(200), size)):
        assert drawn.shape == (200, size) and drawn.min() >= 0
        assert all(len(set(own)) == size for own in drawn.tolist())
    assert (drawn.max(axis=1) < num + np.arange(200)).all()


def test_own_numbers_choose_as_one_number() -> None:
    """An episode's choice is the same whether the number is given once or for each."""
    one, each = (generators(7, "train", 0, range(30)) for _ in range(2))
    for num, size in ((20, 16), (1000, 100)):
        assert np.array_equal(one.choice(num, size), each.choice(np.full(30, num), size))


def test_alike_parts_all_episodes_by_their_sizes() -> None:
    draws = generators(8, "train", 0, range(50))
    ways = 2 + draws.integers(3)
    found: dict[int, int] = {}
    for own, (num_ways, shots) in alike(draws, ways, 5):
        assert shots == 5 and (ways[own.indices] == num_ways).all()
        found |= dict.fromkeys(own.indices.tolist(), num_ways)
    assert sorted(found) == list(range(50)) and len(set(found.values())) == 3
