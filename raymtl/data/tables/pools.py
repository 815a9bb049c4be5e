"""The rows that episodes are drawn from: those with a label, by split, group and class."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raymtl.data.base import SPLITS, Split
from raymtl.data.counts import most
from raymtl.data.tables.findings import small_class_note, small_group_note
from raymtl.data.tables.settings import FilesConfig
from raymtl.storage.notes import Note
from raymtl.types import UserError

Pools = dict[str, np.ndarray]


class _Members(NamedTuple):
    """Which group or class each row is in, and how many rows of one an episode needs."""

    codes: np.ndarray
    """[N]: the number of the group or class."""
    names: np.ndarray
    """[G]"""
    least: int


def make_pools(
    source: FilesConfig,
    arrays: Mapping[str, np.ndarray],
    splits: np.ndarray,
    group_keys: pa.Array | None,
) -> tuple[Pools, list[Note]]:
    """The rows with a label, of each split; by group or class where episodes are of these.

    Also gives notes on groups and classes that are too small to be drawn. Raises UserError where
    a split has too few rows, groups or classes.
    """
    labelled = np.any([arrays[f"mask/{name}"] for name in source.tasks], axis=0)
    pools: Pools = {}
    notes: list[Note] = []
    if source.group is not None:
        pools["group"] = pc.dictionary_encode(group_keys).indices.to_numpy(zero_copy_only=False)
    for number, split in enumerate(SPLITS):
        rows = np.flatnonzero(labelled & (splits == number))
        if source.episodes == "rows":
            pools |= _pools_of_rows(source, arrays, split, rows)
            continue
        if source.episodes == "classes":
            members = _classes(source, arrays)
        else:
            members = _groups(group_keys)
        counts = np.bincount(members.codes[rows], minlength=len(members.names))
        notes += _notes_on_small(source, split, members, counts)
        pools |= _pools_of_members(source, split, rows, members, counts)
    return pools, notes


def _pools_of_rows(
    source: FilesConfig, arrays: Mapping[str, np.ndarray], split: Split, rows: np.ndarray
) -> Pools:
    """The rows of a split, and those with a label of each task."""
    pools = {f"rows/{split}": rows}
    for name in source.tasks:
        pools[f"rows/{split}/{name}"] = rows[arrays[f"mask/{name}"][rows]]
    if source.found.pool is None or split != "train":
        _check_enough(source, split, len(rows), 2, "rows with a label")
    return pools


def _classes(source: FilesConfig, arrays: Mapping[str, np.ndarray]) -> _Members:
    (task,) = source.tasks
    classes = next(iter(source.found.tasks.values())).classes
    least = most(source.shots) + source.queries
    return _Members(arrays[f"target/{task}"], np.array(classes), least)


def _groups(group_keys: pa.Array | None) -> _Members:
    encoded = pc.dictionary_encode(group_keys)
    codes = encoded.indices.to_numpy(zero_copy_only=False)
    return _Members(codes, np.array(encoded.dictionary.to_pylist()), 2)


def _pools_of_members(
    source: FilesConfig, split: Split, rows: np.ndarray, members: _Members, counts: np.ndarray
) -> Pools:
    """The rows of a split, one group or class after the other in the order of their names."""
    large = np.flatnonzero(counts >= members.least)
    chosen = sorted(large, key=lambda code: members.names[code])
    if source.episodes == "groups":
        _check_enough(source, split, len(chosen), 1, f"groups of {members.least} rows")
    else:
        what = f"classes of {members.least} rows"
        _check_enough(source, split, len(chosen), most(source.ways), what)
    parts = [rows[members.codes[rows] == code] for code in chosen]
    return {
        f"rows/{split}": np.concatenate(parts),
        f"starts/{split}": np.cumsum([0, *(len(part) for part in parts)]),
        f"names/{split}": members.names[chosen],
    }


def _notes_on_small(
    source: FilesConfig, split: Split, members: _Members, counts: np.ndarray
) -> list[Note]:
    """A note on the groups or classes in a split that have fewer rows than an episode needs."""
    small: Sequence[str] = members.names[(counts > 0) & (counts < members.least)].tolist()
    if not small:
        return []
    number = int((counts > 0).sum())
    if source.episodes == "classes":
        return [small_class_note(source.task_names[0], split, small, number, members.least)]
    return [small_group_note(str(source.group), split, small, number, members.least)]


def _check_enough(source: FilesConfig, split: str, got: int, least: int, what: str) -> None:
    """Raises UserError where a split has fewer than the least number of what is drawn."""
    if got >= least:
        return
    less = "less"
    if source.episodes == "classes":
        less = "less ways, shots or queries"
    raise UserError(
        f"data.split: expected {least} {what} at least in {split}, got {got}. Change "
        f"data.split.fractions, ask for {less}, or give more rows."
    )
