"""Which row is for training, validation or testing: by hash, so that the order of the rows does not
matter.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raymtl.data.base import SPLITS
from raymtl.data.tables.columns import is_bytes, is_list, is_number, plain, texts, vectors

ALIASES = {
    name: split
    for split, names in enumerate(
        (
            ("train", "training", "fit"),
            ("val", "valid", "validation", "dev", "eval"),
            ("test", "testing", "holdout"),
        )
    )
    for name in names
}
UNKNOWN = -1
"""In place of a split's number: the row is in none yet."""


def splits_named(names: pa.Array) -> np.ndarray:
    """The number of the split that each text names, [N] int8; -1 where it names none."""
    known = pa.array(list(ALIASES))
    index = pc.fill_null(pc.index_in(pc.utf8_lower(names), value_set=known), len(known))
    table = np.array([*ALIASES.values(), UNKNOWN], np.int8)
    split_of_row: np.ndarray = table[index.to_numpy(zero_copy_only=False)]
    return split_of_row


def hashes(columns: Sequence[tuple[str, pa.ChunkedArray]], seed: int) -> np.ndarray:
    """A hash of every row's values in these columns and of the seed, [N] uint64."""
    total = np.full(len(columns[0][1]), np.uint64(seed), np.uint64)
    scratch = np.empty_like(total)
    for _, column in columns:
        _join(total, _of_column(column), scratch)
    return _mixed(total)


def _join(total: np.ndarray, bits: np.ndarray, scratch: np.ndarray) -> None:
    """Makes `total` a hash of both; turned round first, since a product carries bits upwards
    alone. `scratch` is memory for it.
    """
    np.right_shift(total, np.uint64(41), out=scratch)
    np.left_shift(total, np.uint64(23), out=total)
    total |= scratch
    total ^= bits
    total *= np.uint64(0x9E3779B97F4A7C15)


def _of_column(column: pa.ChunkedArray) -> np.ndarray:
    kind = column.type
    if pa.types.is_float64(kind):
        return _of_numbers(column.to_numpy())
    if is_number(kind) and not (pa.types.is_temporal(kind) or pa.types.is_decimal(kind)):
        values = plain(column)
        if pa.types.is_boolean(kind):
            values = pc.cast(values, pa.uint8())
        return _of_numbers(pc.cast(values, pa.float64(), safe=False).to_numpy(zero_copy_only=False))
    if (
        is_list(kind)
        and is_number(kind.value_type)
        and len(pc.unique(pc.list_value_length(plain(column)))) == 1
    ):
        total = np.zeros(len(column), np.uint64)
        scratch = np.empty_like(total)
        for values in vectors(column, "", lambda row: "").T:
            _join(total, (values + 0.0).view(np.uint64), scratch)
        return total
    if is_bytes(kind):
        contents = [v.get("bytes") if isinstance(v, dict) else v for v in column.to_pylist()]
        return np.array([_of_bytes(content or b"") for content in contents], np.uint64)
    encoded = pc.dictionary_encode(texts(column), null_encoding="encode")
    of_value = np.array(
        [_of_bytes((value or "").encode()) for value in encoded.dictionary.to_pylist()], np.uint64
    )
    split_of_row: np.ndarray = of_value[encoded.indices.to_numpy(zero_copy_only=False)]
    return split_of_row


def _of_numbers(values: np.ndarray) -> np.ndarray:
    numbers = values + 0.0  # -0 is 0
    if np.isnan(numbers.sum()):  # there are many bit patterns of nan
        numbers = np.where(np.isnan(numbers), np.nan, numbers)
    return numbers.view(np.uint64)


def _of_bytes(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def _mixed(values: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele et al., 2014): every bit of the result depends on all
    bits.
    """
    with np.errstate(over="ignore"):
        values = values + np.uint64(0x9E3779B97F4A7C15)
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed: np.ndarray = values ^ (values >> np.uint64(31))
    return mixed


def by_rank(hashed: np.ndarray, shares: Sequence[float]) -> np.ndarray:
    """Sides [N] by the order of the hashes: each gets its share of the different ones, and one at
    least if there are.

    Equal hashes, which are equal groups, are on the same side.
    """
    different, inverse = np.unique(hashed, return_inverse=True)
    wanted = [split for split, share in enumerate(shares) if share > 0]
    cuts = np.cumsum([shares[split] for split in wanted]) / sum(shares)
    stops = np.round(cuts * len(different)).astype(int)
    if len(different) >= len(wanted):
        for i in range(len(stops)):  # at least one each, as many kept for those after it
            stops[i] = min(max(stops[i], i + 1), len(different) - (len(stops) - 1 - i))
    splits = np.empty(len(different), np.int8)
    start = 0
    for split, stop in zip(wanted, stops, strict=True):
        splits[start:stop] = split
        start = stop
    ranked: np.ndarray = splits[inverse]
    return ranked


def by_threshold(hashed: np.ndarray, shares: Sequence[float]) -> np.ndarray:
    """Sides [N] of each row by itself, so that it takes no other row to know: shares hold on
    average.
    """
    cuts = np.cumsum(shares)[:-1] / sum(shares)
    split_numbers: np.ndarray = np.searchsorted(cuts, hashed / 2.0**64, side="right").astype(
        np.int8
    )
    return split_numbers


def leak(groups: pa.Array, splits: np.ndarray) -> tuple[int, int] | None:
    """Two rows of one group on different sides, or None where each group is on one."""
    codes = pc.dictionary_encode(pc.fill_null(groups, "")).indices.to_numpy(zero_copy_only=False)
    if len(codes):
        first = np.zeros(int(codes.max()) + 1, np.int64)
    else:
        first = np.zeros(0, np.int64)
    first[codes[::-1]] = np.arange(len(codes))[::-1]
    other = np.flatnonzero(splits != splits[first[codes]])
    if len(other):
        return (int(first[codes[other[0]]]), int(other[0]))
    return None


def split_name(split: int) -> str:
    """`train`, `val` or `test`."""
    return SPLITS[split]
