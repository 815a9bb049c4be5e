"""All rows of the user's files as arrays, encoded and split."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa

from raymtl.data.base import SPLITS
from raymtl.data.tables.dataset import TableDataset
from raymtl.data.tables.encode import Encoded, encode_blocks
from raymtl.data.tables.load_notes import (
    beyond_notes,
    faded_notes,
    missing_map_notes,
    unlabelled_notes,
    unreadable_notes,
)
from raymtl.data.tables.pools import make_pools
from raymtl.data.tables.settings import FilesConfig
from raymtl.data.tables.split_rows import assign_splits, block_splits, splits_in
from raymtl.storage.notes import ARRAY, Note, pack


class EncodingFaults(Protocol):
    """What could not be read in a block, by the names of pictures and maps."""

    @property
    def unreadable(self) -> Sequence[str]: ...
    @property
    def missing_maps(self) -> Sequence[str]: ...
    @property
    def beyond(self) -> Sequence[str]: ...
    @property
    def faded(self) -> Sequence[str]: ...


class Loaded(NamedTuple):
    """The encoded blocks, the split of each of their rows [N], and how many rows were seen."""

    blocks: Sequence[Encoded]
    splits: np.ndarray
    num_seen: int


def load(source: FilesConfig) -> dict[str, np.ndarray]:
    """All rows, or where they are streamed those that are held out; and which split each is in."""
    dataset = TableDataset(source)
    dataset.check_fitted(source.found)
    streamed = source.found.pool is not None
    if streamed:
        loaded = _load_held_out(source, dataset)
    else:
        loaded = _load_all(source, dataset)
    return assemble(source, loaded, streamed=streamed)


def assemble(source: FilesConfig, loaded: Loaded, *, streamed: bool) -> dict[str, np.ndarray]:
    """The encoded rows with the pools that episodes are drawn from, and the notes on them."""
    arrays = _concatenated(loaded.blocks)
    notes = notes_of_blocks(source, loaded.blocks, loaded.num_seen)
    keys = [block.group_keys for block in loaded.blocks if block.group_keys is not None]
    group_keys = None
    if keys:
        group_keys = pa.concat_arrays(keys)
    pools, pool_notes = make_pools(source, arrays, loaded.splits, group_keys)
    arrays |= pools
    notes += pool_notes
    names = list(source.tasks)
    masks = [arrays[f"mask/{name}"] for name in names]
    counts = [int(mask[loaded.splits == 0].sum()) for mask in masks]
    if streamed:
        counts = [round(source.found.tasks[name].labelled * source.found.rows) for name in names]
    elif all(mask.all() for mask in masks):
        arrays["complete"] = np.array(True)
    notes += unlabelled_notes(source, arrays, loaded.splits)
    return arrays | {
        "side": loaded.splits,
        "tasks": np.array(names),
        "sizes": np.array(counts),
        ARRAY: pack(notes),
    }


def _load_all(source: FilesConfig, dataset: TableDataset) -> Loaded:
    blocks = list(_encoded_blocks(source, dataset))
    given = np.concatenate([block.given for block in blocks])
    hashed = np.concatenate([block.hashed for block in blocks])
    splits = assign_splits(source, given, hashed, splits_in(given), each_by_itself=False)
    return Loaded(blocks, splits, len(given))


def _load_held_out(source: FilesConfig, dataset: TableDataset) -> Loaded:
    """The rows of validation and test out of a stream, until there are `held_out_rows` of both."""
    blocks: list[Encoded] = []
    splits: list[np.ndarray] = []
    counts, num_seen = np.zeros(len(SPLITS), int), 0
    for block in _encoded_blocks(source, dataset):
        num_seen += len(block.given)
        of_rows = block_splits(source, dataset, block.given, block.hashed)
        open_splits = [split for split in (1, 2) if counts[split] < source.held_out_rows]
        chosen = np.flatnonzero(np.isin(of_rows, open_splits))
        blocks.append(_select(block, chosen))
        splits.append(of_rows[chosen])
        counts += np.bincount(of_rows[chosen], minlength=len(SPLITS))
        if (counts[1:] >= source.held_out_rows).all():
            break
    return Loaded(blocks, np.concatenate(splits), num_seen)


def _encoded_blocks(source: FilesConfig, dataset: TableDataset) -> Iterator[Encoded]:
    """Every block in its order; of a stream, in a random one."""
    order = np.arange(len(dataset.blocks))
    if source.found.pool is not None:
        order = np.random.default_rng(source.split.seed).permutation(order)
    yield from encode_blocks(source, dataset, order.tolist())


def _select(block: Encoded, rows: np.ndarray) -> Encoded:
    """Some rows of a block."""
    group_keys = block.group_keys
    if group_keys is not None:
        group_keys = group_keys.take(pa.array(rows))
    return block._replace(
        arrays={key: values[rows] for key, values in block.arrays.items()},
        given=block.given[rows],
        hashed=block.hashed[rows],
        group_keys=group_keys,
    )


def _concatenated(blocks: Sequence[Encoded]) -> dict[str, np.ndarray]:
    """The arrays of all blocks; those of an only one are not copied."""
    if len(blocks) == 1:
        return dict(blocks[0].arrays)
    keys = list(blocks[0].arrays)
    return {key: np.concatenate([block.arrays[key] for block in blocks]) for key in keys}


def notes_of_blocks(
    source: FilesConfig, blocks: Iterable[EncodingFaults], num_seen: int
) -> list[Note]:
    """The notes on what could not be read in these blocks of `num_seen` rows. Raises UserError
    where it is too much.
    """
    unreadable: list[str] = []
    missing: list[str] = []
    beyond: list[str] = []
    faded: list[str] = []
    for block in blocks:
        unreadable += block.unreadable
        missing += block.missing_maps
        beyond += block.beyond
        faded += block.faded
    return [
        *unreadable_notes(source, unreadable, num_seen),
        *missing_map_notes(missing),
        *beyond_notes(source, beyond),
        *faded_notes(source, faded),
    ]
