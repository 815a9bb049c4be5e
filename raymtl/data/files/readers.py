"""Files as blocks of rows: Parquet, CSV, ARFF, MATLAB cells and folders of pictures, from any place.

A block is a row group of a Parquet file, another file as a whole, or some of the pictures. It is read by itself, so
that files larger than memory can be read in any order.
"""

import glob
import os
import posixpath
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from raymtl.data.files.columns import SUFFIXES, is_text, named_files, texts
from raymtl.data.files.schema import Format
from raymtl.data.files.splits import ALIASES
from raymtl.redact import holds_secret, redacted
from raymtl.types import UserError

PICTURES_A_BLOCK = 64
ENDINGS: Mapping[Format, tuple[str, ...]] = {
    "parquet": (".parquet", ".pq"),
    "csv": (".csv", ".tsv", ".csv.gz", ".tsv.gz", ".csv.bz2", ".csv.zst"),
    "arff": (".arff", ".arff.gz"),
    "mat": (".mat",),
    "pictures": SUFFIXES,
}
TABLES = (*ENDINGS["parquet"], *ENDINGS["csv"])
MAPS = (*SUFFIXES, ".npy")
FILE, FOLDER = "file", "folder"
"""Columns of a folder of pictures: the name of the file below it, and of the folder it is in."""


class Block(NamedTuple):
    """Rows that are read together. `side` is the split that their path says, `task` the one task they are for."""

    file: str
    row_group: int | None = None
    start: int = 0
    """Of its rows among those of the file."""
    rows: int | None = None
    side: int | None = None
    task: str | None = None


class Place(NamedTuple):
    """Files somewhere, by their paths there."""

    fs: pafs.FileSystem
    files: tuple[str, ...]
    root: str
    shown: str
    """As the user wrote it."""

    def read(self, file: str) -> bytes:
        """All of a file. Raises OSError."""
        with self.fs.open_input_file(file) as stream:
            content: bytes = stream.read()
        return content

    def is_there(self, file: str) -> bool:
        """Whether there is such a file."""
        return bool(self.fs.get_file_info(file).type == pafs.FileType.File)


def absolute(path: str, key: str) -> str:
    """The path from the root of the disk; a URL, or the variable that holds it, as it is. Raises UserError.

    A configuration is kept and shown: a URL's password or signature has to come from the environment at every reading.
    """
    found = _expanded(path, key)
    if "://" not in found:
        return os.path.abspath(found)
    if holds_secret(re.sub(r"\$\{?\w+\}?", "", path)):
        raise UserError(
            f"{key}: expected the password or signature in an environment variable, as in $MY_DATA_URL, got it in "
            f"{redacted(path)} itself, which config.yaml would keep. Set the variable to the URL, and give its name."
        )
    return path


def _expanded(path: str, key: str) -> str:
    found = os.path.expanduser(os.path.expandvars(path))
    if "$" in found:
        name = found.partition("$")[2].partition("/")[0].strip("{}")
        raise UserError(f"{key}: expected the environment variable {name} to be set, got none: {path}. Set it.")
    return found


def locate(path: str, key: str) -> Place:
    """The files that a path, a pattern, a folder or a URL means, in the order of their names. Raises UserError."""
    shown, path = path, _expanded(path, key)
    try:
        if "://" not in path:
            fs: pafs.FileSystem = pafs.LocalFileSystem()
            found = sorted(glob.glob(path, recursive=True)) if not os.path.exists(path) and glob.has_magic(path) else []
            if not found and not os.path.exists(path):
                raise UserError(f"{key}: expected a file, a folder or a URL, got {shown}, where there is none.")
            root = path
        else:
            fs, root = _remote(path)
            found = []
            if any(mark in root for mark in "*?["):
                fixed = root[: min(root.index(mark) for mark in "*?[" if mark in root)].rpartition("/")[0]
                found = [name for name in files_below(fs, fixed) if Path(name).match(root)]
                root = fixed
        files = []
        for name in found or [root]:
            info = fs.get_file_info(name)
            if info.type == pafs.FileType.NotFound:
                raise UserError(f"{key}: expected a file, a folder or a URL, got {shown}, where there is none.")
            files += files_below(fs, name) if info.type == pafs.FileType.Directory else [name]
    except (OSError, ImportError, ValueError, pa.ArrowException) as error:
        raise UserError(
            f"{key}: {shown} cannot be read ({redacted(_reason(error))}). Correct it, or see to the access."
        ) from None
    folder = root if len(files) != 1 or files[0] != root else posixpath.dirname(root)
    if found and "://" not in path:
        folder = os.path.commonpath([os.path.dirname(name) for name in found])
    return Place(fs, tuple(files), folder, shown)


def _remote(url: str) -> tuple[pafs.FileSystem, str]:
    """pyarrow's own file systems first, which read without the lock of Python; else those of fsspec."""
    try:
        fs, root = pafs.FileSystem.from_uri(url)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        import fsspec

        found, root = fsspec.core.url_to_fs(url)
        fs = pafs.PyFileSystem(pafs.FSSpecHandler(found))
    return fs, root


def files_below(fs: pafs.FileSystem, folder: str) -> list[str]:
    """The files below a folder, other than hidden ones."""
    found = []
    for info in fs.get_file_info(pafs.FileSelector(folder, recursive=True)):
        inside = info.path.removeprefix(folder).strip("/").split("/")
        if info.type == pafs.FileType.File and not any(part.startswith((".", "_")) for part in inside):
            found.append(info.path)
    return sorted(found)


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".")[:200] or type(error).__name__


def format_of(place: Place, key: str) -> Format:
    """What most of the files are by their endings. Raises UserError where that is not clear."""
    counts = {form: sum(name.lower().endswith(endings) for name in place.files) for form, endings in ENDINGS.items()}
    if counts["pictures"]:
        return "pictures"
    found = [form for form, count in counts.items() if count]
    if len(found) == 1:
        return found[0]
    got = " and ".join(found) if found else f"{len(place.files)} files of another kind"
    raise UserError(f"{key}: expected files of one known kind in {place.shown}, got {got}. Say data.format.")


class Reading(NamedTuple):
    """How text becomes a table."""

    missing_values: tuple[str, ...]
    delimiter: str | None
    encoding: str


class Table:
    """Blocks of rows with the same columns."""

    def __init__(self, blocks: Sequence[Block], names: Sequence[str], read: Callable[[Block], pa.Table]) -> None:
        self.blocks = list(blocks)
        self.names = list(names)
        """Of the columns."""
        self._read = read

    def read(self, block: Block) -> pa.Table:
        """The rows of a block. Raises UserError where the file cannot be read, or has other columns than others."""
        return self._read(block)

    @staticmethod
    def where(block: Block, row: int) -> str:
        """The file, and the row in it, counted from 0."""
        return f"{block.file}: row {block.start + row}"


def open_table(place: Place, form: Format, reading: Reading, key: str) -> Table:
    """A table out of these files, whose columns must be the same in all. Raises UserError."""
    files = [name for name in place.files if form == "csv" or name.lower().endswith(ENDINGS[form])] or [*place.files]
    blocks: list[Block] = []
    names: list[str] = []
    for file in files:
        inside = file.removeprefix(place.root).strip("/").split("/")[:-1]
        side = next((ALIASES[part.lower()] for part in inside if part.lower() in ALIASES), None)
        own, rows_of = _contents(place, file, form, reading)
        repeated = next((name for name in own if own.count(name) > 1), None)
        if repeated is not None:
            raise UserError(f"{file}: expected different names of columns, got '{repeated}' twice. Rename one.")
        own = [*own, *_of_folders(inside)]
        if names and set(own) != set(names):
            odd = sorted(set(own) ^ set(names))[0]
            has = "has" if odd in own else "lacks"
            raise UserError(
                f"{file}: expected the columns of {files[0]}, got others: it {has} '{odd}'. "
                "All parts must have the same columns."
            )
        names = names or own
        start = 0
        for row_group, rows in rows_of:
            if rows != 0:
                blocks.append(Block(file, row_group, start, rows, side))
            start += rows or 0
    if not blocks:
        raise UserError(f"{key}: {files[0] if len(files) == 1 else place.shown}: expected rows, got an empty file.")

    def read(block: Block) -> pa.Table:
        table = _read_block(place, block, form, reading)
        inside = block.file.removeprefix(place.root).strip("/").split("/")[:-1]
        for name, value in _of_folders(inside).items():
            table = table.append_column(name, pa.array([value] * len(table)))
        return table.select(names)

    return Table(blocks, names, read)


def _of_folders(folders: Sequence[str]) -> dict[str, str]:
    """Columns that folders named NAME=VALUE stand for."""
    return dict(part.split("=", 1) for part in folders if "=" in part)


def _contents(
    place: Place, file: str, form: Format, reading: Reading
) -> tuple[list[str], list[tuple[int | None, int | None]]]:
    """Names of the columns, and (row group, rows) of each block; rows are None where only reading would tell."""
    if form == "parquet":
        try:
            with place.fs.open_input_file(file) as stream:
                about = pq.ParquetFile(stream)
                rows = [about.metadata.row_group(i).num_rows for i in range(about.num_row_groups)]
                return list(about.schema_arrow.names), list(enumerate(rows))
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{file}: expected a Parquet file, got something else ({_reason(error)}).") from None
    table = _read_block(place, Block(file), form, reading)
    return table.column_names, [(None, len(table))]


def _read_block(place: Place, block: Block, form: Format, reading: Reading) -> pa.Table:
    try:
        if form == "parquet":
            with place.fs.open_input_file(block.file) as stream:
                return pq.ParquetFile(stream).read_row_group(block.row_group)
        if form == "csv":
            return _read_csv(place, block.file, reading)
        content = place.read(block.file)
        return _read_arff(content, block.file) if form == "arff" else _read_mat(content, block.file)
    except (pa.ArrowException, OSError, EOFError) as error:
        raise UserError(f"{block.file}: cannot be read as {form} ({_reason(error)}). Correct the file.") from None


def _read_csv(place: Place, file: str, reading: Reading) -> pa.Table:
    from pyarrow import csv

    with place.fs.open_input_stream(file) as stream:  # by its ending it is decompressed
        content = stream.read()
    if not content.strip():
        raise UserError(f"{file}: expected a header and rows, got an empty file.")
    head = content[: content.find(b"\n") if b"\n" in content else None].decode(reading.encoding, "replace")
    delimiter = reading.delimiter or max(",\t;|", key=head.count)
    table = csv.read_csv(
        pa.BufferReader(content),
        read_options=csv.ReadOptions(encoding=reading.encoding),
        parse_options=csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        convert_options=csv.ConvertOptions(
            null_values=list(reading.missing_values), strings_can_be_null=True, quoted_strings_can_be_null=True
        ),
    )
    for field in table.schema:
        if pa.types.is_binary(field.type):  # what pyarrow makes of text that it cannot decode
            raise UserError(
                f"{file}: column '{field.name}': expected text in {reading.encoding}, got another encoding. "
                "Set data.encoding, such as latin1."
            )
    return table


def _read_arff(content: bytes, file: str) -> pa.Table:
    import gzip
    import io

    from scipy.io import arff

    text = (gzip.decompress(content) if file.endswith(".gz") else content).decode()
    try:
        rows, about = arff.loadarff(io.StringIO(text))
    except (arff.ArffError, NotImplementedError, ValueError, StopIteration) as error:
        raise UserError(f"{file}: expected an ARFF file, got something else ({_reason(error)}).") from None
    columns = {}
    for name, kind in zip(about.names(), about.types(), strict=True):
        values = rows[name]
        if kind == "nominal":
            columns[name] = pa.array([None if v == b"?" else v.decode() for v in values])
        else:
            columns[name] = pa.array(values, from_pandas=True)
    return pa.table(columns)


def _read_mat(content: bytes, file: str) -> pa.Table:
    """Cells X and Y with the inputs [N_t, D] and the labels of task t, as columns x0 ..., y (or y0 ...) and task."""
    import io

    from scipy.io import loadmat

    try:
        cells = {name: value for name, value in loadmat(io.BytesIO(content)).items() if not name.startswith("__")}
    except (ValueError, NotImplementedError) as error:
        raise UserError(f"{file}: expected a MATLAB file up to version 7, got another ({_reason(error)}).") from None
    if not {"X", "Y"} <= set(cells) or any(cells[name].dtype != object for name in "XY"):
        raise UserError(f"{file}: expected cells X and Y with one entry a task, got {sorted(cells)}.")
    x, y = ([np.asarray(part, np.float64) for part in cells[name].ravel()] for name in "XY")
    y = [part.reshape(len(part), -1) if part.ndim > 1 and len(part) == len(own) else part.reshape(len(own), -1)
         for part, own in zip(y, x, strict=True)]  # fmt: skip
    inputs, labels = np.concatenate(x), np.concatenate(y)
    columns = {f"x{i}": values for i, values in enumerate(inputs.T)}
    columns |= {"y" if labels.shape[1] == 1 else f"y{i}": values for i, values in enumerate(labels.T)}
    return pa.table({**columns, "task": np.repeat(np.arange(len(x)), [len(part) for part in x])})


def open_pictures(place: Place, reading: Reading, key: str, labels_in: Collection[str] = ()) -> Table:
    """The pictures below a folder, with what a table of labels beside them says of each, if there is one.

    Columns: `file`, the path below the folder; `folder`, the name of the folder that it is in, and where folders are
    nested `folder1`, `folder2` ... from the outermost on; those of the table. Folders named as the splits are none of
    these: they say the split. Pictures that the columns `labels_in` of the table name are labels and no
    rows, as are others in a folder of such.
    """
    tables = [name for name in place.files if name.lower().endswith(TABLES)]
    labels: pa.Table | None = None
    if len(tables) > 1:
        raise UserError(
            f"{key}: expected one table of labels beside the pictures, got {', '.join(tables[:3])}. Give data.path the "
            "table that is meant, with a column of the pictures' names."
        )
    taken: set[str | None] = set()
    inputs: set[str | None] = set()
    if tables:
        form: Format = "parquet" if tables[0].lower().endswith(ENDINGS["parquet"]) else "csv"
        opened = open_table(Place(place.fs, (tables[0],), place.root, tables[0]), form, reading, key)
        labels = pa.concat_tables([opened.read(block) for block in opened.blocks])
        listing = Listing(place)
        for name in labels.column_names:
            if is_text(labels[name].type) and named_files(texts(labels[name])):
                found = listing.found(texts(labels[name]).to_pylist())
                (taken if name in labels_in else inputs).update(found)
    # A folder with the labels of some pictures and no inputs holds labels alone.
    of_labels = {posixpath.dirname(name) for name in taken if name} - {posixpath.dirname(n) for n in inputs if n}
    pictures = [
        name
        for name in place.files
        if name.lower().endswith(SUFFIXES)
        and name not in taken - inputs
        and (name in inputs or posixpath.dirname(name) not in of_labels)
    ]
    if not pictures:
        raise UserError(f"{key}: {place.shown}: expected pictures, got none that are no labels. Correct the path.")
    paths = [name.removeprefix(place.root).strip("/") for name in pictures]
    sides, folders = [], []
    for path in paths:
        parts = path.split("/")[:-1]
        named = [part.lower() in ALIASES for part in parts]
        sides.append(ALIASES[parts[named.index(True)].lower()] if any(named) else None)
        folders.append([part for part, is_side in zip(parts, named, strict=True) if not is_side])
    columns: dict[str, Any] = {FILE: paths, FOLDER: [parts[-1] if parts else None for parts in folders]}
    depth = max(len(parts) for parts in folders)
    if depth > 1:
        for level in range(depth):
            columns[f"{FOLDER}{level + 1}"] = [parts[level] if level < len(parts) else None for parts in folders]
    table = pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})
    if labels is not None:
        table = _with_labels(table, labels, tables[0], labels_in)
    order = np.argsort(np.array([-1 if side is None else side for side in sides]), kind="stable")
    table = table.take(order)
    sides = [sides[i] for i in order]
    blocks = []
    start = 0
    while start < len(sides):  # a block is on one side
        stop = start
        while stop < min(len(sides), start + PICTURES_A_BLOCK) and sides[stop] == sides[start]:
            stop += 1
        blocks.append(Block(place.root, None, start, stop - start, sides[start]))
        start = stop
    return Table(blocks, table.column_names, lambda block: table.slice(block.start, block.rows))


def key_of(name: str) -> str:
    """The name of a file in the form that names are compared in."""
    return unicodedata.normalize("NFC", name.replace("\\", "/").strip().removeprefix("./"))


class Listing:
    """The files of a place, to be found by their names."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.by_path = {key_of(file.removeprefix(place.root).strip("/")): file for file in place.files}
        self.by_name: dict[str, str | None] = {}
        for path, file in self.by_path.items():
            alone = path.rpartition("/")[2]
            self.by_name[alone] = None if alone in self.by_name else file

    def found(self, names: Iterable[str | None]) -> list[str | None]:
        """The files of these names, each below the place or of this name anywhere in it; None without."""
        keys = [None if name is None else key_of(name) for name in names]
        return [
            None if key is None else self.by_path.get(key) or self.by_name.get(key.rpartition("/")[2]) for key in keys
        ]


def stems_below(place: Place) -> dict[str, str]:
    """Name without folders and ending -> file, of maps; of a pattern such as `*_mask.png` what the star stands for.

    Those in folders have their path below the place too. A name that two files have is none.
    """
    before, star, after = posixpath.basename(place.shown).partition("*")
    named: dict[str, str] = {}
    twice: set[str] = set()
    for file in place.files:
        if not file.lower().endswith(MAPS):
            continue
        path = key_of(file.removeprefix(place.root).strip("/"))
        folder, _, name = path.rpartition("/")
        if star and name.startswith(before) and name.endswith(after):
            stem = name[len(before) : len(name) - len(after)]
        else:
            stem = name.rpartition(".")[0]
        for key in {stem, f"{folder}/{stem}".lstrip("/")}:
            if named.setdefault(key, file) != file:
                twice.add(key)
    return {key: file for key, file in named.items() if key not in twice}


def _with_labels(table: pa.Table, labels: pa.Table, source: str, labels_in: Collection[str]) -> pa.Table:
    """The pictures and their labels, joined by the column that names most of the pictures, which is no label."""
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
            f"{source}: expected a column with the names of the pictures beside it, got {labels.column_names}. "
            "Write the path of each picture below the folder."
        )
    values = [None if v is None else key_of(v) for v in texts(labels[name]).to_pylist()]
    seen: dict[str, int] = {}
    for row, value in enumerate(values):
        if value in seen:
            raise UserError(f"{source}: row {row}, column '{name}': expected each picture once, got '{value}' twice.")
        if value is not None:
            seen[value] = row
    rows = pa.array([seen.get(path) for path in own], pa.int64())
    for other in labels.column_names:
        if other == name:
            continue
        label = other if other not in table.column_names else f"{other} (table)"
        table = table.append_column(label, labels[other].take(rows))
    return table


def joined(table: pa.Table, labels: pa.Table, key: str, source: str) -> Iterator[tuple[str, pa.ChunkedArray]]:
    """The columns of `labels` for the rows of `table`, by the column `key` of both; null where there is none."""
    own = texts(labels[key])
    if len(pc.unique(own)) < len(own):
        row = next(row for row, value in enumerate(own.to_pylist()) if value in own[:row].to_pylist())
        raise UserError(f"{source}: row {row}, column '{key}': expected each key once, got '{own[row].as_py()}' twice.")
    rows = pc.index_in(texts(table[key]), value_set=own)
    for name in labels.column_names:
        if name != key:
            yield name, labels[name].take(rows)
