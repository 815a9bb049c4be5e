"""Folders of pictures as tables, with what a table beside them says of each."""

import posixpath
from collections.abc import Collection, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from raymtl.data.tables.blocks import Block, Cells, Reading, Table
from raymtl.data.tables.columns import SUFFIXES, is_text, named_files, texts
from raymtl.data.tables.joins import OF_TABLE, LabelTable, join_pictures
from raymtl.data.tables.listing import Listing
from raymtl.data.tables.paths import ANNOTATIONS, ENDINGS, KNOWN, TABLES, FileSet
from raymtl.data.tables.readers import open_table
from raymtl.data.tables.schema import Format
from raymtl.data.tables.splits import ALIASES, UNKNOWN
from raymtl.storage.notes import Note
from raymtl.types import UserError

PICTURES_A_BLOCK = 64
NAMED = 3  # files that a note names
FILE, FOLDER = "file", "folder"
"""Columns of a folder of pictures: the name of the file below it, and of the folder it is in."""


class _NamedPictures(NamedTuple):
    """The pictures that the columns of a table of labels name."""

    labels: set[str | None]
    inputs: set[str | None]


class _Location(NamedTuple):
    """What the path of a picture below the folder says."""

    path: str
    split: int
    """The number of its split, or UNKNOWN."""
    folders: Sequence[str]
    """The names of the folders that it is in, without that of the split."""

    def folder(self, level: int) -> str | None:
        """The folder at a level, the outermost being 0 and the innermost -1; None without one."""
        if level >= len(self.folders) or not self.folders:
            return None
        return self.folders[level]


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
    labels = _label_table(file_set, reading, key)
    pictures = _input_pictures(file_set, _named_pictures(file_set, labels, labels_in))
    if not pictures:
        raise UserError(
            f"{key}: {file_set.shown}: expected pictures, got none that are no labels. Correct the "
            "path."
        )
    locations = _locations(pictures, file_set.root)
    columns = _columns_of_paths(locations)
    table = pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})
    notes = _other_notes(file_set)
    written = Cells()
    if labels is not None:
        paths = [location.path for location in locations]
        table, without_picture = join_pictures(table, paths, labels, labels_in)
        written = labels.cells
        if without_picture:
            text = (
                f"{len(without_picture)} rows name no picture that is there, and are left out: "
                f"{named_first(without_picture)}"
            )
            notes.append(Note(place=labels.file, text=text, key=key))
    of_table = {
        name for name in table.column_names if name.removesuffix(OF_TABLE) in written.columns
    }
    written = written._replace(columns=frozenset(of_table - set(columns)), names=frozenset(columns))
    return _by_split(table, locations, file_set.root, written), notes


def _by_split(table: pa.Table, locations: Sequence[_Location], root: str, written: Cells) -> Table:
    """The pictures in the order of their splits, in blocks of one split each."""
    splits = np.array([location.split for location in locations])
    order = np.argsort(splits, kind="stable")
    ordered = table.take(order)
    return Table(
        _blocks(root, splits[order].tolist()),
        ordered.column_names,
        lambda block, _: ordered.slice(block.start, block.rows),
        written=written,
    )


def _label_table(file_set: FileSet, reading: Reading, key: str) -> LabelTable | None:
    """The table beside the pictures. Raises UserError where there are several."""
    tables = [name for name in file_set.files if name.lower().endswith(TABLES)]
    if len(tables) > 1:
        raise UserError(
            f"{key}: expected one table of labels beside the pictures, got "
            f"{', '.join(tables[:3])}. Give data.path the table that is meant, with a column of "
            "the pictures' names."
        )
    if not tables:
        return None
    file = tables[0]
    form: Format = "csv"
    if file.lower().endswith(ENDINGS["parquet"]):
        form = "parquet"
    opened = open_table(FileSet(file_set.fs, (file,), file_set.root, file), form, reading, key)
    rows = pa.concat_tables([opened.raw(block) for block in opened.blocks])
    return LabelTable(file, rows, opened.written)


def _named_pictures(
    file_set: FileSet, labels: LabelTable | None, labels_in: Collection[str]
) -> _NamedPictures:
    """The pictures that are named in columns of labels, and those that are named in others."""
    named = _NamedPictures(set(), set())
    if labels is None:
        return named
    listing = Listing(file_set)
    for name in labels.rows.column_names:
        column = labels.rows[name]
        if not is_text(column.type) or not named_files(texts(column)):
            continue
        pictures = listing.found(texts(column).to_pylist())
        if name in labels_in:
            named.labels.update(pictures)
        else:
            named.inputs.update(pictures)
    return named


def _input_pictures(file_set: FileSet, named: _NamedPictures) -> list[str]:
    """The pictures that are rows: those that are no labels, in folders of more than labels."""
    folders_of_inputs = {posixpath.dirname(name) for name in named.inputs if name}
    # A folder with the labels of some pictures and no inputs holds labels alone.
    folders_of_labels = {posixpath.dirname(name) for name in named.labels if name}
    folders_of_labels -= folders_of_inputs
    labels_alone = named.labels - named.inputs
    pictures = []
    for name in file_set.files:
        if not name.lower().endswith(SUFFIXES) or name in labels_alone:
            continue
        if name in named.inputs or posixpath.dirname(name) not in folders_of_labels:
            pictures.append(name)
    return pictures


def _locations(pictures: Sequence[str], root: str) -> list[_Location]:
    """The split and the folders of each picture, by its path below the root."""
    locations = []
    for picture in pictures:
        path = picture.removeprefix(root).strip("/")
        folders = path.split("/")[:-1]
        of_splits = [ALIASES[name.lower()] for name in folders if name.lower() in ALIASES]
        others = [name for name in folders if name.lower() not in ALIASES]
        locations.append(_Location(path, [*of_splits, UNKNOWN][0], others))
    return locations


def _columns_of_paths(locations: Sequence[_Location]) -> dict[str, list[str | None]]:
    """The path of each picture, the folder it is in, and where folders are nested all of them."""
    columns: dict[str, list[str | None]] = {
        FILE: [location.path for location in locations],
        FOLDER: [location.folder(-1) for location in locations],
    }
    depth = max(len(location.folders) for location in locations)
    if depth > 1:
        for level in range(depth):
            columns[f"{FOLDER}{level + 1}"] = [location.folder(level) for location in locations]
    return columns


def _blocks(root: str, splits: Sequence[int]) -> list[Block]:
    """Blocks of pictures in the order of their splits, each of one split."""
    blocks: list[Block] = []
    for split, group in groupby(splits):
        start = sum(block.rows or 0 for block in blocks)
        stop = start + len(list(group))
        for first in range(start, stop, PICTURES_A_BLOCK):
            rows = min(PICTURES_A_BLOCK, stop - first)
            blocks.append(Block(root, None, first, rows, split if split != UNKNOWN else None))
    return blocks


def _other_notes(file_set: FileSet) -> list[Note]:
    """A note on the files in a folder of pictures that are neither pictures nor labels."""
    others = [name for name in file_set.files if not name.lower().endswith((*KNOWN, *ANNOTATIONS))]
    if not others:
        return []
    text = (
        f"{len(others)} are of no known kind of pictures, and are passed over: "
        f"{named_first(others)}"
    )
    return [Note(place="files", text=text, key="data.path")]


def named_first(names: Sequence[str]) -> str:
    """The first of these names, and how many more there are."""
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" * (len(names) > NAMED))
