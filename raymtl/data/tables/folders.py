"""Folders of pictures as tables, with what a table beside them says of each."""

import posixpath
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raymtl.data.tables.columns import SUFFIXES, is_text, named_files, texts
from raymtl.data.tables.paths import ANNOTATIONS, ENDINGS, KNOWN, TABLES, FileSet, Listing, key_of
from raymtl.data.tables.readers import Block, Cells, Reading, Table, open_table
from raymtl.data.tables.schema import Format
from raymtl.data.tables.splits import ALIASES
from raymtl.notes import Note
from raymtl.types import UserError

PICTURES_A_BLOCK = 64
NAMED = 3  # files that a note names
OF_TABLE = " (table)"
"""Behind the name of a column of the table, where the pictures have one of that name."""
FILE, FOLDER = "file", "folder"
"""Columns of a folder of pictures: the name of the file below it, and of the folder it is in."""


def open_pictures(
    file_set: FileSet, reading: Reading, key: str, labels_in: Collection[str] = ()
) -> tuple[Table, list[Note]]:
    """The pictures below a folder, with what a table of labels beside them says of each, if there
    is one; and notes.

    Columns: `file`, the path below the folder; `folder`, the name of the folder that it is in, and
    where folders are nested `folder1`, `folder2` ... from the outermost on; those of the table.
    Folders named as the splits are none of these: they say the split. Pictures that the columns
    `labels_in` of the table name are labels and no rows, as are others in a folder of such.
    """
    tables = [name for name in file_set.files if name.lower().endswith(TABLES)]
    labels: pa.Table | None = None
    written = Cells()
    if len(tables) > 1:
        raise UserError(
            f"{key}: expected one table of labels beside the pictures, got "
            f"{', '.join(tables[:3])}. Give data.path the table that is meant, with a column of "
            "the pictures' names."
        )
    taken: set[str | None] = set()
    inputs: set[str | None] = set()
    if tables:
        form: Format
        if tables[0].lower().endswith(ENDINGS["parquet"]):
            form = "parquet"
        else:
            form = "csv"
        opened = open_table(
            FileSet(file_set.fs, (tables[0],), file_set.root, tables[0]), form, reading, key
        )
        labels = pa.concat_tables([opened.raw(block) for block in opened.blocks])
        written = opened.written
        listing = Listing(file_set)
        for name in labels.column_names:
            if is_text(labels[name].type) and named_files(texts(labels[name])):
                found = listing.found(texts(labels[name]).to_pylist())
                (taken if name in labels_in else inputs).update(found)
    # A folder with the labels of some pictures and no inputs holds labels alone.
    of_labels = {posixpath.dirname(name) for name in taken if name} - {
        posixpath.dirname(n) for n in inputs if n
    }
    pictures = [
        name
        for name in file_set.files
        if name.lower().endswith(SUFFIXES)
        and name not in taken - inputs
        and (name in inputs or posixpath.dirname(name) not in of_labels)
    ]
    if not pictures:
        raise UserError(
            f"{key}: {file_set.shown}: expected pictures, got none that are no labels. Correct the "
            "path."
        )
    paths = [name.removeprefix(file_set.root).strip("/") for name in pictures]
    splits, folders = [], []
    for path in paths:
        parts = path.split("/")[:-1]
        named = [part.lower() in ALIASES for part in parts]
        splits.append(ALIASES[parts[named.index(True)].lower()] if any(named) else None)
        folders.append([part for part, is_side in zip(parts, named, strict=True) if not is_side])
    columns: dict[str, Any] = {
        FILE: paths,
        FOLDER: [parts[-1] if parts else None for parts in folders],
    }
    depth = max(len(parts) for parts in folders)
    if depth > 1:
        for level in range(depth):
            columns[f"{FOLDER}{level + 1}"] = [
                parts[level] if level < len(parts) else None for parts in folders
            ]
    table = pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})
    notes = _other_notes(file_set)
    if labels is not None:
        table, gone = _with_labels(table, labels, tables[0], labels_in)
        if gone:
            text = f"{len(gone)} rows name no picture that is there, and are left out: {named_first(gone)}"
            notes.append(Note(place=tables[0], text=text, key=key))
    order = np.argsort(
        np.array([-1 if split is None else split for split in splits]), kind="stable"
    )
    table = table.take(order)
    splits = [splits[i] for i in order]
    blocks = []
    start = 0
    while start < len(splits):  # a block is on one side
        stop = start
        while stop < min(len(splits), start + PICTURES_A_BLOCK) and splits[stop] == splits[start]:
            stop += 1
        blocks.append(Block(file_set.root, None, start, stop - start, splits[start]))
        start = stop
    of_table = {
        name for name in table.column_names if name.removesuffix(OF_TABLE) in written.columns
    }
    written = written._replace(columns=frozenset(of_table - set(columns)), names=frozenset(columns))
    table_of = Table(
        blocks,
        table.column_names,
        lambda block, _: table.slice(block.start, block.rows),
        written=written,
    )
    return table_of, notes


def _other_notes(file_set: FileSet) -> list[Note]:
    """Of files in a folder of pictures that are neither pictures nor labels of any kind."""
    others = [name for name in file_set.files if not name.lower().endswith((*KNOWN, *ANNOTATIONS))]
    if not others:
        return []
    text = f"{len(others)} are of no known kind of pictures, and are passed over: {named_first(others)}"
    return [Note(place="files", text=text, key="data.path")]


def named_first(names: Sequence[str]) -> str:
    """The first of these names, and how many more there are."""
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" * (len(names) > NAMED))


def _with_labels(
    table: pa.Table, labels: pa.Table, source: str, labels_in: Collection[str]
) -> tuple[pa.Table, list[str]]:
    """The pictures and their labels, joined by the column that names most of the pictures, which is
    no label.

    And what that column names beside pictures.
    """
    paths = [key_of(path) for path in table[FILE].to_pylist()]
    ways: tuple[Callable[[str], str], ...] = (
        lambda path: path,
        lambda path: path.rpartition("/")[2],
        lambda path: path.rpartition(".")[0],
        lambda path: path.rpartition("/")[2].rpartition(".")[0],
    )
    best: tuple[int, str, list[str]] = (0, "", [])
    for way in ways:
        own = [way(path) for path in paths]
        if len(set(own)) < len(own):
            continue  # names that two pictures have say nothing
        for name in [name for name in labels.column_names if name not in labels_in]:
            found = {key_of(v) for v in texts(labels[name]).drop_null().to_pylist()} & set(own)
            if len(found) > best[0]:
                best = (len(found), name, own)
    count, name, own = best
    if not count:
        raise UserError(
            f"{source}: expected a column with the names of the pictures beside it, got "
            f"{labels.column_names}. Write the path of each picture below the folder."
        )
    values = [None if v is None else key_of(v) for v in texts(labels[name]).to_pylist()]
    seen: dict[str, int] = {}
    for row, value in enumerate(values):
        if value in seen:
            raise UserError(
                f"{source}: row {row}, column '{name}': expected each picture once, got '{value}' "
                "twice."
            )
        if value is not None:
            seen[value] = row
    rows = pa.array([seen.get(path) for path in own], pa.int64())
    for other in labels.column_names:
        if other == name:
            continue
        if other not in table.column_names:
            label = other
        else:
            label = f"{other}{OF_TABLE}"
        table = table.append_column(label, labels[other].take(rows))
    return table, sorted(set(seen) - set(own))


def joined(
    table: pa.Table, labels: pa.Table, key: str, source: str
) -> Iterator[tuple[str, pa.ChunkedArray]]:
    """The columns of `labels` for the rows of `table`, by the column `key` of both; null where
    there is none.
    """
    own = texts(labels[key])
    if len(pc.unique(own)) < len(own):
        row = next(
            row for row, value in enumerate(own.to_pylist()) if value in own[:row].to_pylist()
        )
        raise UserError(
            f"{source}: row {row}, column '{key}': expected each key once, got "
            f"'{own[row].as_py()}' twice."
        )
    rows = pc.index_in(texts(table[key]), value_set=own)
    for name in labels.column_names:
        if name != key:
            yield name, labels[name].take(rows)
