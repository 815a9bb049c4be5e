"""The chances of all episodes of a meta-batch, drawn at once: a generator by counters.

Each episode has a generator of its own, SplitMix64 (Steele, Lea, Flood, 2014, "Fast splittable
pseudorandom number generators", doi:10.1145/2660193.2660195). Its word n is

    mix64(seed + (n + 1) gamma mod 2^64),

so that any word is computed alone. The seed and the odd gamma of an episode are hashed from
(seed, split, step, index); seeds differ where indices do. The d-th draw of an episode takes the
words from d 2^32 on. So a number depends on its episode and its place in it, and on nothing that
was drawn for other episodes.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Self

import numpy as np

Words = np.ndarray
"""uint64; sums and products are modulo 2^64."""

GENERATOR = "splitmix64"
"""What checkpoints say of how the episodes of their training were drawn."""

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
"""2^64 divided by the golden ratio, odd: steps between seeds of the same meta-batch."""
DRAW = 2**32
"""Words that a draw can take."""
DENSE = 8
"""Where fewer than this many times as many are to choose from as are chosen, all are shuffled."""
MOST = 2**24
"""Numbers that are shuffled at most: the other 40 bits of a key are random."""


def _mix64(words: Words) -> Words:
    """Stafford's variant 13 of the finaliser of MurmurHash3, in place."""
    words ^= words >> np.uint64(30)
    words *= np.uint64(0xBF58476D1CE4E5B9)
    words ^= words >> np.uint64(27)
    words *= np.uint64(0x94D049BB133111EB)
    words ^= words >> np.uint64(31)
    return words


def _mix_gamma(words: Words) -> Words:
    """Odd numbers whose bits change often enough from one to the next (Steele et al., fig. 16)."""
    words ^= words >> np.uint64(33)
    words *= np.uint64(0xFF51AFD7ED558CCD)
    words ^= words >> np.uint64(33)
    words *= np.uint64(0xC4CEB9FE1A85EC53)
    words ^= words >> np.uint64(33)
    words |= np.uint64(1)
    regular = np.bitwise_count(words ^ (words >> np.uint64(1))) < 24
    words[regular] ^= np.uint64(0xAAAAAAAAAAAAAAAA)
    return words


class _Stream(NamedTuple):
    """The words of one draw, of E episodes."""

    starts: Words
    """[E]"""
    gammas: Words
    """[E]"""

    def of(self, rows: np.ndarray) -> "_Stream":
        return _Stream(self.starts[rows], self.gammas[rows])

    def words(self, number: int) -> Words:
        """The first words, [E, number]."""
        places = np.arange(1, number + 1, dtype=np.uint64)
        words = self.gammas[:, None] * places
        words += self.starts[:, None]
        return _mix64(words)


class Draws:
    """The generators of E episodes: every method gives an array [E, ...], a row an episode.

    Each call is a draw of all E episodes, and no two calls give the same numbers.
    """

    def __init__(self, seeds: Words, gammas: Words, indices: np.ndarray, num_drawn: int = 0):
        self._seeds, self._gammas, self._num_drawn = seeds, gammas, num_drawn
        self.indices = indices
        """[E]: which episodes of the meta-batch they are."""

    @classmethod
    def of_episodes(cls, key: Sequence[int], indices: Sequence[int]) -> Self:
        """The generators of some episodes; `key` are the numbers that all of them share."""
        seed, gamma = np.random.SeedSequence(key).generate_state(2, np.uint64)
        numbers = np.asarray(indices)
        steps = numbers.astype(np.uint64) * GOLDEN
        return cls(_mix64(seed + steps), _mix_gamma(gamma + steps), numbers)

    def __len__(self) -> int:
        return len(self._seeds)

    def __getitem__(self, rows: np.ndarray | slice) -> Self:
        """The generators of some of these episodes, from where they are."""
        return type(self)(
            self._seeds[rows], self._gammas[rows], self.indices[rows], self._num_drawn
        )

    def split(self, number: int) -> Self:
        """Further generators, `number` of each episode, [E * number], an episode after another."""
        seeds = self._next().words(2 * number).reshape(-1, 2)
        gammas = _mix_gamma(seeds[:, 1].copy())
        return type(self)(seeds[:, 0].copy(), gammas, self.indices.repeat(number))

    def _next(self) -> _Stream:
        skipped = np.uint64(self._num_drawn * DRAW % 2**64)
        self._num_drawn += 1
        return _Stream(self._seeds + self._gammas * skipped, self._gammas)

    def bits(self, *shape: int) -> Words:
        """[E, *shape]: 64 random bits each."""
        return self._next().words(math.prod(shape)).reshape(len(self), *shape)

    def uniform(self, low: float, high: float, *shape: int) -> np.ndarray:
        """[E, *shape]: numbers between the bounds, the upper one excluded."""
        numbers = _fractions(self.bits(*shape))
        numbers *= high - low
        numbers += low
        return numbers

    def normal(self, *shape: int) -> np.ndarray:
        """[E, *shape]: standard normal (Box and Muller, 1958)."""
        pairs = _fractions(self.bits(2, *shape))
        radius = np.sqrt(-2 * np.log1p(-pairs[:, 0]))
        numbers: np.ndarray = radius * np.cos(2 * math.pi * pairs[:, 1])
        return numbers

    def integers(self, num: int, *shape: int) -> np.ndarray:
        """[E, *shape]: integers below `num`, with equal odds."""
        return _below(self.bits(*shape), num)

    def coins(self, *shape: int) -> np.ndarray:
        """[E, *shape]: True or False, at even odds."""
        heads: np.ndarray = self.bits(*shape) >> np.uint64(63) == 1
        return heads

    def choice(self, num: int | np.ndarray, size: int) -> np.ndarray:
        """[E, size]: different integers below `num`, or below an episode's own, in random order.

        All ordered choices have equal odds. `size` is at most `num`.
        """
        stream = self._next()
        if isinstance(num, int):
            if num <= DENSE * size:
                return _shuffled(stream, num, size)
            return _distinct(stream, num, size)
        chosen = np.empty((len(self), size), np.int64)
        # How one is chosen may depend on its own number alone.
        dense = num <= DENSE * size
        for rows, choose in ((dense, _shuffled), (~dense, _distinct)):
            if rows.any():
                chosen[rows] = choose(stream.of(rows), num[rows, None], size)
        return chosen


def _fractions(words: Words) -> np.ndarray:
    """Words -> numbers in [0, 1), in place: multiples of 2^-53."""
    words >>= np.uint64(11)
    fractions: np.ndarray = words.view(np.int64).astype(np.float64)
    fractions *= 2.0**-53
    return fractions


def _below(words: Words, num: int | np.ndarray) -> np.ndarray:
    """Words -> integers below `num`, with odds that differ by less than num / 2^53, in place."""
    words >>= np.uint64(11)
    scaled = words.view(np.int64) * (num * 2.0**-53)
    return scaled.astype(np.int64)


def _shuffled(stream: _Stream, num: int | np.ndarray, size: int) -> np.ndarray:
    """Sorts all numbers below `num` by random keys; the first of them."""
    most = int(np.max(num))
    if most > MOST:
        raise ValueError(f"expected at most {MOST} numbers to shuffle, got {most}")
    places = np.arange(most, dtype=np.uint64)
    low_bits = np.uint64(2 ** max(1, (most - 1).bit_length()) - 1)
    # Numbers stand in the lowest bits, so that no two keys are equal.
    keys = stream.words(most)
    keys &= ~low_bits
    keys |= places
    if isinstance(num, np.ndarray):
        keys[places >= num] = np.uint64(2**64 - 1)
    keys.sort(axis=1)
    chosen = keys[:, :size] & low_bits
    return chosen.view(np.int64)


def _distinct(stream: _Stream, num: int | np.ndarray, size: int) -> np.ndarray:
    """Draws with replacement and passes over what came before, until there are enough."""
    chosen = np.empty((len(stream.starts), size), np.int64)
    rows = np.arange(len(chosen))
    # As many as are likely to suffice; what comes first does not depend on it.
    number = size + 2 * size * size // int(np.min(num))
    while len(rows):
        if isinstance(num, np.ndarray):
            drawn = _below(stream.of(rows).words(number), num[rows])
        else:
            drawn = _below(stream.of(rows).words(number), num)
        is_new = _first_of_their_value(drawn)
        is_new &= is_new.cumsum(axis=1) <= size
        enough = is_new.sum(axis=1) == size
        chosen[rows[enough]] = drawn[enough][is_new[enough]].reshape(-1, size)
        rows = rows[~enough]
        number = 2 * number + 1
    return chosen


def _first_of_their_value(drawn: np.ndarray) -> np.ndarray:
    """[E, N] numbers below 2^31 -> bool: whether no number before it in its row is equal."""
    keys = (drawn << 32) + np.arange(drawn.shape[1])
    keys.sort(axis=1)
    row, column = np.nonzero((keys[:, 1:] ^ keys[:, :-1]) < 2**32)
    is_new = np.ones(drawn.shape, bool)
    is_new[row, keys[row, column + 1] & (2**32 - 1)] = False
    return is_new


def alike(draws: Draws, *sizes: np.ndarray | int) -> Iterator[tuple[Draws, tuple[int, ...]]]:
    """The episodes that have the same sizes, together; a size is an integer, or each one's [E]."""
    for rows, own in rows_alike(len(draws), *sizes):
        yield draws[rows], own


def rows_alike(
    num: int, *sizes: np.ndarray | int
) -> Iterator[tuple[np.ndarray | slice, tuple[int, ...]]]:
    """Which of this many episodes have the same sizes."""
    if all(isinstance(size, int) for size in sizes):
        yield slice(None), tuple(int(size) for size in sizes)
        return
    columns = [np.broadcast_to(size, num).tolist() for size in sizes]
    rows: dict[tuple[int, ...], list[int]] = {}
    for row, own in enumerate(zip(*columns, strict=True)):
        rows.setdefault(own, []).append(row)
    for own, members in rows.items():
        yield np.array(members), own
