"""The rows that findings are made of, and their splits."""

from collections.abc import Sequence, Set
from typing import NamedTuple

import numpy as np

from raymtl.data.base import SPLITS, Split
from raymtl.data.tables.columns import LocateRow
from raymtl.data.tables.dataset import TableDataset, TableRows
from raymtl.data.tables.settings import FilesConfig
from raymtl.data.tables.split_rows import (
    assign_splits,
    check_leak,
    given_splits,
    group_keys_of,
    row_hashes,
    splits_in,
)
from raymtl.data.tables.splits import UNKNOWN
from raymtl.types import UserError


class Sample(NamedTuple):
    """The rows that findings are made of, of some blocks or of all."""

    numbers: Sequence[int]
    """The numbers of the blocks."""
    rows: TableRows
    locate_row: LocateRow


class SplitSample(NamedTuple):
    """The same rows with their splits."""

    sample: Sample
    splits: np.ndarray
    """[N] int8"""
    known: Set[int]
    """The splits that the files give."""

    def names_given_by(self, column: str | None) -> tuple[Split, ...]:
        """The splits that a column of splits names."""
        if column is None:
            return ()
        return tuple(SPLITS[split] for split in sorted(self.known))

    @property
    def train(self) -> np.ndarray:
        """Which rows are for training, [N] bool."""
        train: np.ndarray = self.splits == 0
        return train


class Splitting(NamedTuple):
    """What rows are split by."""

    inputs: Sequence[str]
    column: str | None
    streamed: bool


def split_sample(
    source: FilesConfig, dataset: TableDataset, sample: Sample, by: Splitting
) -> SplitSample:
    """The splits of the rows. Raises UserError where a group is in two, or no row is for
    training.
    """
    given = given_splits(sample.rows, None, by.column, sample.locate_row)
    group_keys = group_keys_of(source, sample.rows, sample.locate_row)
    hashed = row_hashes(source, sample.rows, group_keys, by.inputs)
    known: Set[int] = splits_in(given)
    if by.column is None:
        given = _splits_of_paths(dataset, sample.numbers)
        known = dataset.splits_of_paths
    splits = assign_splits(source, given, hashed, known, each_by_itself=by.streamed)
    what = str(source.group)
    if source.episodes == "classes" and source.group is None:
        what = "the class"
    check_leak(group_keys, splits, what, sample.locate_row)
    split = SplitSample(sample, splits, known)
    if not split.train.any():
        raise UserError(
            "data.split: expected rows for training, got none. Correct data.split or the paths."
        )
    return split


def _splits_of_paths(dataset: TableDataset, numbers: Sequence[int]) -> np.ndarray:
    """The split of each row in these blocks that its path says, or UNKNOWN."""
    splits: list[int] = []
    for number in numbers:
        split = dataset.split_of(number)
        if split is None:
            split = UNKNOWN
        splits.append(split)
    counts = [dataset.blocks[number][1].rows or 0 for number in numbers]
    return np.repeat(np.array(splits, np.int8), counts)


def describe_split(source: FilesConfig, column: str | None, dataset: TableDataset) -> str:
    if column:
        return f"column '{column}'"
    if any(dataset.split_of(number) is not None for number in range(len(dataset.blocks))):
        return "paths"
    shares = ":".join(f"{share:g}" for share in source.split.fractions)
    if source.group:
        return f"{shares} of the values of '{source.group}'"
    if source.episodes == "classes":
        return f"{shares} of the classes"
    if source.split.key:
        return f"{shares} by the hash of {source.split.key!r}"
    return f"{shares} by the hash of the inputs"
