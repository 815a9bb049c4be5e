"""Rows of the user's files as arrays: encoded block by block, and told apart into splits."""

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raymtl.data.base import SPLITS, Arrays, most
from raymtl.data.tables.boxes import encode_boxes
from raymtl.data.tables.columns import encode_column, texts
from raymtl.data.tables.dataset import TableDataset, TableRows
from raymtl.data.tables.dense_labels import encode_maps
from raymtl.data.tables.findings import small_class_note, small_group_note
from raymtl.data.tables.labels import encode_task
from raymtl.data.tables.pictures import measured
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
from raymtl.data.tables.wide import encode_columns
from raymtl.notes import ARRAY, Note, pack
from raymtl.types import UserError

NAMED = 5  # unreadable pictures that a message names


class Encoded(NamedTuple):
    """The rows of a block as numbers."""

    arrays: Mapping[str, np.ndarray]
    """`inputs`, and `target/T` and `mask/T` of each task, which is False where the picture could
    not be read.
    """
    given: np.ndarray
    """The side of each row that the files say, or UNKNOWN."""
    hashed: np.ndarray
    group_keys: pa.Array | None
    """The group or the class of each row, as text."""
    unreadable: Sequence[str]
    gone: Sequence[str]
    """Maps that are named and not there."""
    beyond: Sequence[str]
    """Pictures with values darker than black or lighter than white."""
    faded: Sequence[str]
    """Pictures whose colours are seen as greys."""


def encode(source: FilesConfig, dataset: TableDataset, number: int) -> Encoded:
    """A block of rows. Raises UserError, naming file, row and column, for what cannot be a number
    or a label.
    """
    rows = dataset.read(number)

    def locate_row(row: int) -> str:
        return dataset.locate_row(number, row)

    inputs = encode_inputs(source, dataset, number, rows)
    arrays = {"inputs": inputs.numbers}
    unreadable, gone = list(inputs.unreadable), list[str]()
    for name in source.tasks:
        labels = encode_labels(source, dataset, number, name, rows, inputs.shapes)
        arrays[f"target/{name}"], arrays[f"mask/{name}"] = (
            labels.target,
            labels.mask & inputs.readable,
        )
        unreadable += labels.unreadable
        gone += labels.gone
    columns = source.found.hashed or [column.column for column in source.found.columns]
    given, hashed = given_splits(
        source, rows, dataset.split_of(number), columns, source.found.split_column, locate_row
    )
    return Encoded(
        arrays,
        given,
        hashed,
        group_keys_of(source, rows, locate_row),
        unreadable,
        gone,
        inputs.beyond,
        inputs.faded,
    )


class EncodedInputs(NamedTuple):
    """`numbers` [N, ...] and which rows could be read; `shapes` [N, 2] of their pictures, 0 where
    there is none.
    """

    numbers: np.ndarray
    readable: np.ndarray
    shapes: np.ndarray
    unreadable: Sequence[str]
    beyond: Sequence[str] = ()
    """Pictures with values darker than black or lighter than white."""
    faded: Sequence[str] = ()
    """Pictures whose colours are seen as greys."""


class EncodedLabels(NamedTuple):
    """`target` [N, ...] and `mask` [N] of a task; its maps that could not be read, and those that
    are not there.
    """

    target: np.ndarray
    mask: np.ndarray
    unreadable: Sequence[str] = ()
    gone: Sequence[str] = ()


def encode_labels(
    source: FilesConfig,
    dataset: TableDataset,
    number: int,
    name: str,
    rows: TableRows,
    shapes: np.ndarray,
) -> EncodedLabels:
    """The labels of a task in a block, whose pictures had these shapes. Raises UserError for what
    cannot be one.
    """
    fitted = source.found.tasks[name]
    if name in dataset.boxes:
        ((_, index),) = rows.labels[name].items()
        size = source.input_shape[-2:]
        found = encode_boxes(
            fitted, dataset.boxes[name], index, shapes, (size[0], size[1]), source.resize
        )
        return EncodedLabels(found.target, found.mask, found.faults)
    if not fitted.task_kind.is_map:
        return EncodedLabels(
            *encode_task(
                name, fitted, rows.labels[name], lambda row: dataset.locate_row(number, row)
            )
        )
    ((column, values),) = rows.labels[name].items()
    cells, gone = dataset.unread_maps(name, [number], values)
    height, width = source.input_shape[-2:]
    if name in dataset.maps and not fitted.asked.column:
        shown = None
    else:
        shown = column
    target, mask, unreadable = encode_maps(
        name, fitted, shown, cells, shapes, (height, width), source.resize
    )
    return EncodedLabels(target, mask, unreadable, [f"{one} of task '{name}'" for one in gone])


def encode_inputs(
    source: FilesConfig, dataset: TableDataset, number: int, rows: TableRows
) -> EncodedInputs:
    """The inputs of a block. Raises UserError, naming file, row and column, for what cannot be a
    number.
    """
    fitted = source.found.columns
    size = len(rows.table)
    if fitted[0].role == "picture":
        return _pictures(source, dataset, number, rows.table[fitted[0].column])
    out = np.empty((size, *source.input_shape), np.float32)
    done = encode_columns(fitted, rows.table, out, impute=source.missing_inputs == "mean")
    start = 0
    for column in fitted:
        if column.column not in done:
            encode_column(
                column,
                rows.table[column.column],
                out[:, start : start + column.size],
                lambda row: dataset.locate_row(number, row),
                impute=source.missing_inputs == "mean",
            )
        start += column.size
    return EncodedInputs(out, np.ones(size, bool), np.zeros((size, 2), np.int64), [])


def _pictures(
    source: FilesConfig, dataset: TableDataset, number: int, column: pa.ChunkedArray
) -> EncodedInputs:
    channels, height, width = source.input_shape
    reads = dataset.contents(number, column)
    out = np.zeros((len(reads), channels, height, width), np.uint8)
    readable = np.ones(len(reads), bool)
    shapes = np.zeros((len(reads), 2), np.int64)

    beyond, faded = np.zeros((2, len(reads)), bool)

    def named(row: int) -> str:
        value = column[row].as_py()
        if isinstance(value, str):
            return value
        return dataset.locate_row(number, row)

    def fill(row: int) -> str | None:
        try:
            content = reads[row]()
            found = measured(content, (height, width), channels, source.resize, source.found.shades)
        except OSError as error:
            readable[row] = False
            return f"{named(row)} ({' '.join(str(error).split())[:120] or type(error).__name__})"
        out[row], shapes[row], beyond[row], faded[row] = found
        return None

    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as threads:
        algorithms = [algorithm for algorithm in threads.map(fill, range(len(reads))) if algorithm]
    names = [[named(row) for row in np.flatnonzero(flags).tolist()] for flags in (beyond, faded)]
    return EncodedInputs(out, readable, shapes, algorithms, *names)


def given_splits(
    source: FilesConfig,
    rows: TableRows,
    side: int | None,
    inputs: Sequence[str],
    column: str | None,
    locate_row: Any,
) -> tuple[np.ndarray, np.ndarray]:
    """The side of each row that its path or the `column` says, UNKNOWN without one; and the hash
    that decides then.
    """
    size = len(rows.table)
    given = np.full(size, UNKNOWN if side is None else side, np.int8)
    if column is not None:
        named = texts(rows.table[column])
        given = splits_named(named)
        if (given == UNKNOWN).any():
            row = int((given == UNKNOWN).argmax())
            raise UserError(
                f"{locate_row(row)}, column '{column}': expected train, val or test, got "
                f"{named[row].as_py()!r}. Correct the row, or split by data.split.fractions."
            )
    group_keys = group_keys_of(source, rows, locate_row)
    names = [source.split.key] if source.split.key else inputs
    if group_keys is not None:
        return given, hashes([("", pa.chunked_array([group_keys]))], source.split.seed)
    columns = dict(zip(rows.table.column_names, rows.table.columns, strict=True))
    return given, hashes([(name, columns[name]) for name in names], source.split.seed)


def group_keys_of(source: FilesConfig, rows: TableRows, locate_row: Any) -> pa.Array | None:
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


def assign_splits(
    source: FilesConfig, given: np.ndarray, hashed: np.ndarray, *, each_by_itself: bool
) -> np.ndarray:
    """The side of every row, [N] int8.

    Sides that the files do not say at all are taken out of those for training. Where
    `each_by_itself`, shares hold on average; else they hold exactly, and every side has a row where
    there are enough of them.
    """
    if each_by_itself:
        cut = by_threshold
    else:
        cut = by_rank
    said = set(np.unique(given).tolist()) - {UNKNOWN}
    open_rows = given == (0 if said else UNKNOWN)
    shares = [
        share if side == 0 or side not in said else 0.0
        for side, share in enumerate(source.split.fractions)
    ]
    splits = given.copy()
    if said and (given == UNKNOWN).any():
        raise UserError(
            "data.path: expected every file to be below a folder train, val or test, or none, got "
            "both."
        )
    if not said or sum(shares) > shares[0]:
        splits[open_rows] = cut(hashed[open_rows], shares)
    return splits


def check_leak(group_keys: pa.Array | None, splits: np.ndarray, what: str, locate_row: Any) -> None:
    """Raises UserError where a group, or a class, is on two sides."""
    if group_keys is None:
        rows = None
    else:
        rows = leak(group_keys, splits)
    if group_keys is not None and rows is not None:
        one, other = rows
        raise UserError(
            f"{locate_row(other)}: expected {what} '{group_keys[other].as_py()}' in "
            f"{split_name(splits[one])} alone, where {locate_row(one)} has it, got it in "
            f"{split_name(splits[other])} too. Correct the split, or leave it to "
            "data.split.fractions."
        )


def load(source: FilesConfig) -> dict[str, np.ndarray]:
    """All rows, or where they are streamed those that are held out; and which of them are on which
    side.
    """
    dataset = TableDataset(source)
    dataset.check_fitted(source.found)
    streamed = source.found.pool is not None
    encoded: list[Encoded] = []
    splits: list[np.ndarray] = []
    held, seen = np.zeros(len(SPLITS), int), 0
    for one in _blocks(source, dataset):
        seen += len(one.given)
        if streamed:
            side = assign_splits(source, one.given, one.hashed, each_by_itself=True)
            room = source.held_out_rows - held
            keep = np.flatnonzero(np.isin(side, [s for s in (1, 2) if room[s] > 0]))
            encoded.append(_some(one, keep))
            splits.append(side[keep])
            held += np.bincount(side[keep], minlength=len(SPLITS))
            if (held[1:] >= source.held_out_rows).all():
                break
        else:
            encoded.append(one)
    arrays = {
        key: np.concatenate([one.arrays[key] for one in encoded])
        if len(encoded) > 1
        else encoded[0].arrays[key]
        for key in encoded[0].arrays
    }
    given, hashed = (
        np.concatenate(parts) for parts in zip(*((e.given, e.hashed) for e in encoded), strict=True)
    )
    if streamed:
        side = np.concatenate(splits)
    else:
        side = assign_splits(source, given, hashed, each_by_itself=False)
    notes = [
        *unreadable_notes(source, [name for one in encoded for name in one.unreadable], seen),
        *gone_notes([name for one in encoded for name in one.gone]),
        *_beyond_notes(source, [name for one in encoded for name in one.beyond]),
        *_faded_notes(source, [name for one in encoded for name in one.faded]),
    ]
    all_group_keys = [one.group_keys for one in encoded if one.group_keys is not None]
    if all_group_keys:
        group_keys = pa.concat_arrays(all_group_keys)
    else:
        group_keys = None
    arrays |= _pools(source, arrays, side, group_keys, notes)
    names = list(source.tasks)
    counts = [int(arrays[f"mask/{name}"][side == 0].sum()) for name in names]
    if streamed:
        counts = [round(source.found.tasks[name].labelled * source.found.rows) for name in names]
    elif all(arrays[f"mask/{name}"].all() for name in names):
        arrays["complete"] = np.array(True)
    notes += _unlabelled_notes(source, arrays, side)
    return arrays | {
        "side": side,
        "tasks": np.array(names),
        "sizes": np.array(counts),
        ARRAY: pack(notes),
    }


def _blocks(source: FilesConfig, dataset: TableDataset) -> Iterator[Encoded]:
    """Every block in its order; of a stream, in one by chance."""
    order = np.arange(len(dataset.blocks))
    if source.found.pool is not None:
        order = np.random.default_rng(source.split.seed).permutation(order)
    for number in order.tolist():
        yield encode(source, dataset, number)


def _some(one: Encoded, rows: np.ndarray) -> Encoded:
    if one.group_keys is None:
        group_keys = None
    else:
        group_keys = one.group_keys.take(pa.array(rows))
    return Encoded(
        {key: values[rows] for key, values in one.arrays.items()}, one.given[rows], one.hashed[rows], group_keys,
        one.unreadable, one.gone, one.beyond, one.faded,
    )  # fmt: skip


def unreadable_notes(source: FilesConfig, unreadable: Sequence[str], number: int) -> list[Note]:
    """Which of this number of pictures could not be read. Raises UserError where there are too
    many.
    """
    if not unreadable:
        return []
    named = "; ".join(unreadable[:NAMED]) + (
        f" and {len(unreadable) - NAMED} more" * (len(unreadable) > NAMED)
    )
    says = f"{len(unreadable)} of {number} pictures cannot be read: {named}"
    if len(unreadable) > source.max_corrupt * number:
        raise UserError(
            f"data.max_corrupt: {says}, which is over {source.max_corrupt:.1%} of them. Restore "
            "them, or raise it."
        )
    return [Note(place="pictures", text=f"{says}; they are left out", key="data.max_corrupt")]


def _unlabelled_notes(source: FilesConfig, arrays: Arrays, side: np.ndarray) -> list[Note]:
    """Which tasks have no label in the rows of validation or test."""
    return [
        Note(
            place=f"task '{name}'",
            text=f"no row of {split} has a label, so that it is trained, but has no score there",
            key="data.split",
        )
        for name in source.tasks
        for number, split in enumerate(SPLITS)
        if split != "train" and not arrays[f"mask/{name}"][side == number].any()
    ]


def gone_notes(gone: Sequence[str]) -> list[Note]:
    """Which maps are named and not there; their rows have no label of the task."""
    if not gone:
        return []
    named = "; ".join(gone[:NAMED]) + (f" and {len(gone) - NAMED} more" * (len(gone) > NAMED))
    return [
        Note(
            place="maps",
            text=f"{len(gone)} maps are not there: {named}; these rows have no label of it",
        )
    ]


def _faded_notes(source: FilesConfig, faded: Sequence[str]) -> list[Note]:
    """Which pictures are in colour though those that were looked at are grey."""
    if not faded or source.channels is not None:
        return []
    named = "; ".join(faded[:NAMED]) + (f" and {len(faded) - NAMED} more" * (len(faded) > NAMED))
    text = f"{len(faded)} are in colour and are seen as greys, since those that were looked at first are grey: {named}"
    return [Note(place="pictures", text=text, key="data.channels")]


def _beyond_notes(source: FilesConfig, beyond: Sequence[str]) -> list[Note]:
    """Which pictures have values beyond black or white, which the pictures for training have not,
    or few of them.
    """
    if not beyond or source.found.shades is None:
        return []
    named = "; ".join(beyond[:NAMED]) + (f" and {len(beyond) - NAMED} more" * (len(beyond) > NAMED))
    ends = f"{source.found.shades.black:g} to {source.found.shades.white:g}"
    text = f"{len(beyond)} have values outside {ends}, which are cut off: {named}"
    return [Note(place="pictures", text=text, key="data.value_range")]


def _pools(
    source: FilesConfig,
    arrays: Mapping[str, np.ndarray],
    splits: np.ndarray,
    group_keys: pa.Array | None,
    notes: list[Note],
) -> dict[str, np.ndarray]:
    """Which rows are drawn from: those with a label, of each side; by group or class where episodes
    are of these.

    Adds notes on groups and classes that are too small to be drawn.
    """
    labelled = np.any([arrays[f"mask/{name}"] for name in source.tasks], axis=0)
    pools: dict[str, np.ndarray] = {}
    if source.group is not None:
        pools["group"] = pc.dictionary_encode(group_keys).indices.to_numpy(zero_copy_only=False)
    for number, split in enumerate(SPLITS):
        rows = np.flatnonzero(labelled & (splits == number))
        if source.episodes == "rows":
            pools[f"rows/{split}"] = rows
            for name in source.tasks:
                pools[f"rows/{split}/{name}"] = rows[arrays[f"mask/{name}"][rows]]
            if source.found.pool is None or split != "train":
                _need(source, split, len(rows), 2, "rows with a label")
            continue
        if source.episodes == "classes":
            ((_, target),) = ((n, arrays[f"target/{n}"]) for n in source.tasks)
            classes = next(iter(source.found.tasks.values())).classes
            codes, names = target, np.array(classes)
            least = most(source.shots) + source.queries
        else:
            encoded = pc.dictionary_encode(group_keys)
            codes = encoded.indices.to_numpy(zero_copy_only=False)
            names, least = np.array(encoded.dictionary.to_pylist()), 2
        counts = np.bincount(codes[rows], minlength=len(names))
        kept = sorted(np.flatnonzero(counts >= least), key=lambda code: names[code])
        notes += _small(
            source,
            split,
            names[(counts > 0) & (counts < least)].tolist(),
            int((counts > 0).sum()),
            least,
        )
        members = [rows[codes[rows] == code] for code in kept]
        if source.episodes == "groups":
            what = f"groups of {least} rows"
        else:
            what = f"classes of {least} rows"
        _need(
            source, split, len(kept), most(source.ways) if source.episodes == "classes" else 1, what
        )
        pools[f"rows/{split}"] = np.concatenate(members)
        pools[f"starts/{split}"] = np.cumsum([0, *(len(m) for m in members)])
        pools[f"names/{split}"] = names[kept]
    return pools


def _small(
    source: FilesConfig, split: str, small: Sequence[str], number: int, least: int
) -> list[Note]:
    """A note on the groups or classes, of this number in the split, that have fewer than the least
    number of rows.
    """
    if not small:
        return []
    if source.episodes == "classes":
        return [small_class_note(source.task_names[0], split, small, number, least)]
    return [small_group_note(str(source.group), split, small, number, least)]


def _need(source: FilesConfig, split: str, got: int, least: int, what: str) -> None:
    if got < least:
        raise UserError(
            f"data.split: expected {least} {what} at least in {split}, got {got}. Change "
            "data.split.fractions, ask for "
            f"less{' ways, shots or queries' if source.episodes == 'classes' else ''}, or give "
            "more rows."
        )
