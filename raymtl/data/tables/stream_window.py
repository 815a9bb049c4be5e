"""Files larger than memory: at every step episodes are drawn from a window of some blocks, held in
turn.

A window has P places. The block in a place is drawn by chance, in proportion to its rows, from
(seed, place, stretch) alone, and stays for a stretch of `hold_steps` steps; places change at
different steps. So the window of a step, and with it every episode, is a function of (seed, step,
index) for any number of workers and after any interruption. What is weaker than in memory: the rows
of an episode are from P blocks, not from all.
"""

import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from raymtl.data.base import Arrays
from raymtl.data.tables.dataset import TableDataset
from raymtl.data.tables.encode import encode
from raymtl.data.tables.load_notes import unreadable_notes
from raymtl.data.tables.settings import FilesConfig
from raymtl.data.tables.split_rows import assign_splits
from raymtl.types import UserError

AHEAD = 2
"""Steps for which blocks are read before they are asked for: more would need their memory for
longer.
"""

MIN_SEEN = 4
"""Blocks before unreadable pictures are counted: a share of fewer says little."""


def blocks_of(rows: np.ndarray, pool: int, hold: int, seed: int, step: int) -> list[int]:
    """The number of the block in each place at a step; `rows` [B] are those of the blocks."""
    edges = np.cumsum(rows)
    chosen = []
    for place in range(pool):
        stretch = (step + place * hold // pool) // hold
        at = np.random.default_rng([seed, place, stretch]).random() * edges[-1]
        chosen.append(int(np.searchsorted(edges, at, side="right")))
    return chosen


class _Held(NamedTuple):
    arrays: Mapping[str, np.ndarray]
    rows: np.ndarray
    """Those for training that have a label."""


class _Reader:
    """The blocks of one source that are in the memory of this process, and the thread that reads
    the next.
    """

    def __init__(self, source: FilesConfig) -> None:
        self.source, self.dataset = source, TableDataset(source)
        self.dataset.check_fitted(source.found)
        self.rows = np.array([block.rows or 0 for _, block in self.dataset.blocks])
        self.blocks: dict[int, Future[_Held]] = {}
        self.thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="raymtl-read")
        self.lock = threading.Lock()
        self.seen: dict[int, tuple[list[str], int]] = {}
        """Of each block that was read: the pictures that could not be, and its rows."""

    def window(self, seed: int, step: int) -> list[_Held]:
        pool, hold = self.source.found.pool or 1, self.source.hold_steps
        now, soon = (blocks_of(self.rows, pool, hold, seed, s) for s in (step, step + AHEAD))
        with self.lock:
            for number in [*now, *soon]:
                if number not in self.blocks:
                    self.blocks[number] = self.thread.submit(self._read, number)
            for number in set(self.blocks) - {*now, *soon}:
                del self.blocks[number]
            wanted = [self.blocks[number] for number in now]
        return [future.result() for future in wanted]

    def _read(self, number: int) -> _Held:
        one = encode(self.source, self.dataset, number)
        self.seen[number] = (list(one.unreadable), len(one.given))
        if one.unreadable and len(self.seen) >= MIN_SEEN:
            told = list(self.seen.values())
            unreadable_notes(
                self.source,
                [name for names, _ in told for name in names],
                sum(rows for _, rows in told),
            )  # for what it raises
        splits = assign_splits(self.source, one.given, one.hashed, each_by_itself=True)
        labelled = np.any([one.arrays[f"mask/{name}"] for name in self.source.tasks], axis=0)
        return _Held(one.arrays, np.flatnonzero(labelled & (splits == 0)))


_READERS: dict[str, _Reader] = {}
"""The last source that was read in this process, by what it is: its blocks stay between steps."""


def _reader(source: FilesConfig) -> _Reader:
    own = f"{source.digest()} {source.path} {source.tasks} {source.hold_steps}"
    if own not in _READERS:
        _READERS.clear()
        _READERS[own] = _Reader(source)
    return _READERS[own]


def window(source: FilesConfig, arrays: Arrays, seed: int, step: int) -> Arrays:
    """What the episodes of a step are drawn from, beside the rows that are held out."""
    held = _reader(source).window(seed, step)
    counts = [len(next(iter(one.arrays.values()))) for one in held]
    offsets = np.cumsum([0, *counts])
    rows = np.concatenate([one.rows + start for one, start in zip(held, offsets, strict=False)])
    if len(rows) < 2:
        raise UserError(
            f"data.split: expected rows for training in the blocks of step {step}, got {len(rows)}."
        )
    alone = source.task_names if len(source.task_names) == 1 else ()
    own = {
        f"{place}/{key}": values
        for place, one in enumerate(held)
        for key, values in one.arrays.items()
    }
    return {
        **own,
        "offsets": offsets[:-1],
        "rows/train": rows,
        **{f"rows/train/{name}": rows for name in alone},
    }
