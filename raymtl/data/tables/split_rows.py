"""Which split the rows of the user's files are in."""

from collections.abc import Sequence, Set

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raymtl.data.base import SPLITS
from raymtl.data.tables.columns import LocateRow, texts
from raymtl.data.tables.dataset import TableDataset, TableRows
from raymtl.data.tables.schema import Fitted
from raymtl.data.tables.settings import FilesConfig
from raymtl.data.tables.splits import (
    UNKNOWN,
    by_rank,
    by_threshold,
    hashes,
    leak,
    split_name,
    splits_named,
)
from raymtl.types import UserError


def given_splits(
    rows: TableRows, split: int | None, column: str | None, locate_row: LocateRow
) -> np.ndarray:
    """The split of each row that the `column` says, or else the path of its file: [N] int8, UNKNOWN
    without either. Raises UserError where the column names no split.
    """
    if column is None:
        if split is None:
            split = UNKNOWN
        return np.full(len(rows.table), split, np.int8)
    names = texts(rows.table[column])
    given = splits_named(names)
    if (given == UNKNOWN).any():
        row = int((given == UNKNOWN).argmax())
        raise UserError(
            f"{locate_row(row)}, column '{column}': expected train, val or test, got "
            f"{names[row].as_py()!r}. Correct the row, or split by data.split.fractions."
        )
    return given


def row_hashes(
    source: FilesConfig, rows: TableRows, group_keys: pa.Array | None, inputs: Sequence[str]
) -> np.ndarray:
    """The hash of each row [N] that decides its split: of its group, of the key, or of all
    inputs.
    """
    seed = source.split.seed
    if group_keys is not None:
        return hashes([("", pa.chunked_array([group_keys]))], seed)
    names = inputs
    if source.split.key:
        names = [source.split.key]
    columns = dict(zip(rows.table.column_names, rows.table.columns, strict=True))
    return hashes([(name, columns[name]) for name in names], seed)


def group_keys_of(source: FilesConfig, rows: TableRows, locate_row: LocateRow) -> pa.Array | None:
    """The group of each row, or its class for episodes of classes; None where rows are by
    themselves.
    """
    if source.episodes == "classes" and source.group is None:
        ((_, columns),) = rows.labels.items()
        return texts(next(iter(columns.values())))
    if source.group is None:
        return None
    groups = texts(rows.table[source.group])
    if groups.null_count:
        row = int(pc.is_null(groups).to_numpy(zero_copy_only=False).argmax())
        raise UserError(
            f"{locate_row(row)}, column '{source.group}': expected a group, got none. Every row "
            "needs one."
        )
    return groups


def splits_in(given: np.ndarray) -> set[int]:
    """The splits that some of these rows [N] are given."""
    return set(np.unique(given).tolist()) - {UNKNOWN}


def block_splits(
    source: FilesConfig, dataset: TableDataset, given: np.ndarray, hashed: np.ndarray
) -> np.ndarray:
    """The split of every row of one block of a stream, [N] int8.

    A block alone does not say which splits the files give: sorted files have blocks of one split.
    The paths of all blocks say it, or the rows that findings were made of. Raises UserError where a
    block has a split that these lack.
    """
    known = dataset.splits_of_paths
    if source.found.split_column is not None:
        known = _splits_of_column(source.found, given)
    return assign_splits(source, given, hashed, known, each_by_itself=True)


def _splits_of_column(found: Fitted, given: np.ndarray) -> set[int]:
    """The splits that the column of splits names, in a stream of which these rows [N] are some."""
    if found.given_splits is None:
        raise UserError(
            f"data.split.column: expected to know which splits '{found.split_column}' names, got "
            "what an earlier version of raymtl found, which did not keep that. Start the run anew."
        )
    known = {SPLITS.index(split) for split in found.given_splits}
    unexpected = splits_in(given) - known
    if unexpected:
        raise UserError(
            f"data.split.column: expected '{found.split_column}' to name no split but "
            f"{', '.join(found.given_splits)}, as in the rows that were looked at, got "
            f"{split_name(min(unexpected))} in another. Raise data.fit_rows to look at more rows."
        )
    return known


def assign_splits(
    source: FilesConfig,
    given: np.ndarray,
    hashed: np.ndarray,
    known: Set[int],
    *,
    each_by_itself: bool,
) -> np.ndarray:
    """The split of every row, [N] int8.

    `known` are the splits that the files give to these rows or to others. Those that they do not
    give at all are taken out of the rows for training. Where `each_by_itself`, shares hold on
    average; else they hold exactly, and every split has a row where there are enough of them.
    Raises UserError where some files give a split and others none.
    """
    if known and (given == UNKNOWN).any():
        raise UserError(
            "data.path: expected every file to be below a folder train, val or test, or none, got "
            "both."
        )
    shares = list(source.split.fractions)
    for split in set(known) - {0}:
        shares[split] = 0.0
    splits = given.copy()
    if known and sum(shares) <= shares[0]:
        return splits
    unassigned = given == UNKNOWN
    if known:
        unassigned = given == 0
    if each_by_itself:
        splits[unassigned] = by_threshold(hashed[unassigned], shares)
    else:
        splits[unassigned] = by_rank(hashed[unassigned], shares)
    return splits


def check_leak(
    group_keys: pa.Array | None, splits: np.ndarray, what: str, locate_row: LocateRow
) -> None:
    """Raises UserError where a group, or a class, is in two splits."""
    if group_keys is None:
        return
    rows = leak(group_keys, splits)
    if rows is None:
        return
    first, other = rows
    raise UserError(
        f"{locate_row(other)}: expected {what} '{group_keys[other].as_py()}' in "
        f"{split_name(splits[first])} alone, where {locate_row(first)} has it, got it in "
        f"{split_name(splits[other])} too. Correct the split, or leave it to "
        "data.split.fractions."
    )
