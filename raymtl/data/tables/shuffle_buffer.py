"""Files larger than memory: at every step episodes are drawn from a shuffle buffer of some blocks.

Each lane has a buffer of P slots. The block in a slot is drawn at random, in proportion to its
rows, from (seed, lane, slot, epoch of the slot) alone, and stays for an epoch of `hold_steps`
steps; the slots are refreshed at different steps. So the buffer of a step, and with it every
episode, is a function of (seed, step, index) for any number of workers and after any interruption.
The guarantee is weaker than in memory: the rows of an episode are from P blocks, not from all.
"""

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ClassVar, NamedTuple

import numpy as np

from raymtl.data.base import Arrays
from raymtl.data.left_out import LEFT_OUT
from raymtl.data.meters import READ
from raymtl.data.tables.dataset import TableDataset
from raymtl.data.tables.encode import encode
from raymtl.data.tables.load_notes import unreadable_notes
from raymtl.data.tables.probe import DecoderProbe
from raymtl.data.tables.settings import FilesConfig
from raymtl.data.tables.split_rows import block_splits
from raymtl.types import UserError

AHEAD = 2
"""Steps for which blocks are read before they are asked for: more would need their memory for
longer.
"""

LASTING = 16
"""Steps after which a lane that was not asked for is another worker's."""

CAREFUL_STEPS = 16
"""After a process has died, a picture of so many steps can have been what killed it."""

IN_FLIGHT = 4
"""Steps that several threads ask for at the same time, in any order."""

MIN_SEEN = 4
"""Blocks before unreadable pictures are counted: a share of fewer says little."""


def blocks_of(
    rows: np.ndarray, num_slots: int, refresh_interval: int, seed: int, step: int, lane: int = 0
) -> list[int]:
    """The number of the block in each slot of a lane at a step; `rows` [B] are the numbers of rows
    of the blocks.
    """
    edges = np.cumsum(rows)
    chosen = []
    for slot in range(num_slots):
        slot_epoch = (step + slot * refresh_interval // num_slots) // refresh_interval
        key = [seed, slot, slot_epoch]
        if lane:
            key.append(lane)
        at = np.random.default_rng(key).random() * edges[-1]
        chosen.append(int(np.searchsorted(edges, at, side="right")))
    return chosen


class _EncodedBlock(NamedTuple):
    """A block of rows that is in memory."""

    arrays: Mapping[str, np.ndarray]
    rows: np.ndarray
    """The numbers of its rows for training that have a label."""
    unreadable: Sequence[str]
    """The pictures and maps of it that cannot be read."""


class _Reader:
    """The blocks of one source that are in the memory of this process, and the thread that reads
    the next.
    """

    begins_carefully: ClassVar[bool] = False

    def __init__(self, source: FilesConfig) -> None:
        self.source, self.dataset = source, TableDataset(source)
        self.dataset.check_fitted(source.found)
        self.probe = DecoderProbe()
        self.careful_until: int | None = None
        """The step before which pictures go through the probe."""
        self.rows = _rows_to_draw(self.dataset)
        self.blocks: dict[int, Future[_EncodedBlock]] = {}
        self.thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="raymtl-read")
        self.lock = threading.Lock()
        self.wanted: dict[int, dict[int, set[int]]] = {}
        """Of each lane the blocks that its latest steps need, by step."""
        self.seen: dict[int, tuple[list[str], int]] = {}
        """The unreadable pictures and the number of rows of each block that was read."""

    def blocks_at(self, seed: int, step: int, lane: int) -> list[_EncodedBlock]:
        num_slots = self.source.found.pool or 1
        refresh_interval = self.source.hold_steps
        now, soon = (
            blocks_of(self.rows, num_slots, refresh_interval, seed, at, lane)
            for at in (step, step + AHEAD)
        )
        with self.lock:
            if self.begins_carefully and self.careful_until is None:
                self.careful_until = step + CAREFUL_STEPS
            is_careful = step < (self.careful_until or 0)
            for number in [*now, *soon]:
                if number not in self.blocks:
                    self.blocks[number] = self.thread.submit(self._read, number, is_careful)
            self._want(lane, step, {*now, *soon})
            self._forget(step)
            wanted = [self.blocks[number] for number in now]
        return [future.result() for future in wanted]

    def _want(self, lane: int, step: int, numbers: set[int]) -> None:
        steps = self.wanted.setdefault(lane, {})
        latest = max(steps, default=step)
        if step < latest - IN_FLIGHT:
            steps.clear()  # drawn anew from an earlier step
        steps[step] = numbers
        for old in [other for other in steps if other < max(steps) - IN_FLIGHT]:
            del steps[old]

    def _forget(self, step: int) -> None:
        """Lets go the blocks that no lane needs, and lanes that have gone to another worker."""
        gone = [lane for lane, steps in self.wanted.items() if max(steps) < step - LASTING]
        for lane in gone:
            del self.wanted[lane]
        needed: set[int] = set()
        for steps in self.wanted.values():
            needed = needed.union(*steps.values())
        for number in set(self.blocks) - needed:
            del self.blocks[number]

    def _read(self, number: int, is_careful: bool) -> _EncodedBlock:
        self.dataset.probe = None
        if is_careful and self.source.is_image:
            self.dataset.probe = self.probe
        one = encode(self.source, self.dataset, number)
        READ.add(sum(array.nbytes for array in one.arrays.values()))
        self.seen[number] = (list(one.unreadable), len(one.given))
        if one.unreadable and len(self.seen) >= MIN_SEEN:
            seen = list(self.seen.values())
            unreadable_notes(
                self.source,
                [name for names, _ in seen for name in names],
                sum(rows for _, rows in seen),
            )  # for what it raises
        splits = block_splits(self.source, self.dataset, one.given, one.hashed)
        labelled = np.any([one.arrays[f"mask/{name}"] for name in self.source.tasks], axis=0)
        rows = np.flatnonzero(labelled & (splits == 0))
        return _EncodedBlock(one.arrays, rows, one.unreadable)


def _rows_to_draw(dataset: TableDataset) -> np.ndarray:
    """The number of rows of each block [B], 0 where its path says that they are held out."""
    rows = np.array([block.rows or 0 for _, block in dataset.blocks])
    held_out = [dataset.split_of(number) in (1, 2) for number in range(len(rows))]
    rows[held_out] = 0
    return rows


def read_carefully() -> None:
    """Has this process decode the pictures of its first steps in a process of their own before.

    For one that does the work of another that has died: one of these pictures may have killed it.
    """
    _Reader.begins_carefully = True


_READERS: dict[str, _Reader] = {}
"""The last source that was read in this process, by what it is: its blocks stay between steps."""


_READERS_LOCK = threading.Lock()


def _reader(source: FilesConfig) -> _Reader:
    reader_key = f"{source.digest()} {source.path} {source.tasks} {source.hold_steps}"
    with _READERS_LOCK:  # threads that find none would each read its first blocks
        if reader_key not in _READERS:
            _READERS.clear()
            _READERS[reader_key] = _Reader(source)
        return _READERS[reader_key]


def fill_buffer(source: FilesConfig, seed: int, step: int, lane: int) -> Arrays:
    """The arrays that the episodes of a lane are drawn from at a step."""
    blocks = _reader(source).blocks_at(seed, step, lane)
    for block in blocks:
        LEFT_OUT.add(block.unreadable)
    counts = [len(next(iter(block.arrays.values()))) for block in blocks]
    offsets = np.cumsum([0, *counts])
    rows = np.concatenate(
        [block.rows + start for block, start in zip(blocks, offsets, strict=False)]
    )
    if len(rows) < 2:
        raise UserError(
            f"data.split: expected rows for training in the blocks of step {step}, got "
            f"{len(rows)}. Shuffle the rows of the files, or prepare them with `raymtl data "
            "prepare`."
        )
    buffer: dict[str, np.ndarray] = {}
    for slot, block in enumerate(blocks):
        buffer |= {f"{slot}/{key}": values for key, values in block.arrays.items()}
    buffer["offsets"] = offsets[:-1]
    buffer["rows/train"] = rows
    if len(source.task_names) == 1:
        buffer[f"rows/train/{source.task_names[0]}"] = rows
    return buffer
