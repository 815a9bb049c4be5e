"""Where files are: on a disk, behind a pattern, below a folder or at a URL."""

import glob
import os
import posixpath
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.fs as pafs

from raymtl.data.tables.columns import SUFFIXES
from raymtl.data.tables.contents import HEAD, signature_of
from raymtl.data.tables.schema import Format
from raymtl.storage.places import expand, nothing_at
from raymtl.storage.redaction import redacted
from raymtl.types import UserError

ENDINGS: Mapping[Format, tuple[str, ...]] = {
    "parquet": (".parquet", ".pq"),
    "csv": (".csv", ".tsv", ".csv.gz", ".tsv.gz", ".csv.bz2", ".csv.zst"),
    "arff": (".arff", ".arff.gz"),
    "mat": (".mat",),
    "arrow": (".arrow", ".feather", ".ipc"),
    "webdataset": (".tar",),
    "pictures": SUFFIXES,
}
TABLES = (*ENDINGS["parquet"], *ENDINGS["csv"])
MAPS = (*SUFFIXES, ".npy")
ANNOTATIONS = (".xml", ".json")
KNOWN = (*MAPS, *(ending for endings in ENDINGS.values() for ending in endings))


class FileSet(NamedTuple):
    """Files somewhere, by their paths there."""

    fs: pafs.FileSystem
    files: tuple[str, ...]
    root: str
    shown: str
    """As the user wrote it."""
    skipped: tuple[str, ...] = ()
    """Files of known kinds that are passed over for their names."""

    def read(self, file: str) -> bytes:
        """All of a file. Raises OSError."""
        with self.fs.open_input_file(file) as stream:
            content: bytes = stream.read()
        return content

    def is_there(self, file: str) -> bool:
        """Whether there is such a file."""
        return bool(self.fs.get_file_info(file).type == pafs.FileType.File)


class _Matches(NamedTuple):
    """What a path means: a file system, the folder below which names are given, and the files that
    a pattern matches.
    """

    fs: pafs.FileSystem
    root: str
    names: list[str]
    """The matches of a pattern; none where the path is no pattern."""


def locate(path: str, key: str) -> FileSet:
    """The files that a path, a pattern, a folder or a URL means, in the order of their names.
    Raises UserError.
    """
    shown, path = path, expand(path, key)
    try:
        if "://" in path:
            matches = _remote_matches(path)
        else:
            matches = _local_matches(path, shown, key)
        below = _files_of(matches, shown, key)
    except (OSError, ImportError, ValueError, pa.ArrowException) as error:
        raise UserError(
            f"{key}: {shown} cannot be read ({redacted(reason(error))}). Correct it, or see to the "
            "access."
        ) from None
    folder = matches.root
    if matches.names and "://" not in path:
        folder = os.path.commonpath([os.path.dirname(name) for name in matches.names])
    elif below.files == [matches.root]:
        folder = posixpath.dirname(matches.root)
    return FileSet(matches.fs, tuple(below.files), folder, shown, tuple(below.skipped))


def _local_matches(path: str, shown: str, key: str) -> _Matches:
    names: list[str] = []
    if not os.path.exists(path):
        if glob.has_magic(path):
            names = sorted(glob.glob(path, recursive=True))
        if not names:
            raise nothing_at(shown, key)
    return _Matches(pafs.LocalFileSystem(), path, names)


def _remote_matches(url: str) -> _Matches:
    fs, root = file_system_of(url)
    marks = [root.index(mark) for mark in "*?[" if mark in root]
    if not marks:
        return _Matches(fs, root, [])
    folder = root[: min(marks)].rpartition("/")[0]
    names = [name for name in files_below(fs, folder).files if Path(name).match(root)]
    return _Matches(fs, folder, names)


def _files_of(matches: _Matches, shown: str, key: str) -> "Below":
    """The files that were matched, and those below the folders that were."""
    files: list[str] = []
    skipped: list[str] = []
    for name in matches.names or [matches.root]:
        info = matches.fs.get_file_info(name)
        if info.type == pafs.FileType.NotFound:
            raise nothing_at(shown, key)
        if info.type == pafs.FileType.Directory:
            below = files_below(matches.fs, name)
        else:
            below = Below([name], [])
        files += below.files
        skipped += below.skipped
    return Below(files, skipped)


def file_system_of(url: str) -> tuple[pafs.FileSystem, str]:
    """The file system of a URL, and the path there. pyarrow's own come first, which read without
    the lock of Python; then those of fsspec.
    """
    try:
        fs, root = pafs.FileSystem.from_uri(url)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        import fsspec

        fsspec_fs, root = fsspec.core.url_to_fs(url)
        fs = pafs.PyFileSystem(pafs.FSSpecHandler(fsspec_fs))
    return fs, root


def file_key(file_set: FileSet, file: str, *about: Hashable) -> Hashable:
    """What a file is as long as it has not changed, and how it is read."""
    info = file_set.fs.get_file_info(file)
    return file, info.size, info.mtime_ns, *about


class Below(NamedTuple):
    """The files below a folder, and those of known kinds that are passed over for their names."""

    files: list[str]
    skipped: list[str]


def has_threads(fs: pafs.FileSystem) -> bool:
    """Whether Arrow's threads may read from it. From one of fsspec they would get memory of Python
    (`arrow_stream`).
    """
    return not isinstance(fs, pafs.PyFileSystem)


def files_below(fs: pafs.FileSystem, folder: str) -> Below:
    """The files below a folder, in the order of their names.

    Passed over is what begins with a dot or lies in a folder that does, what macOS adds to archives
    (`__MACOSX`), and tables that begin with `_`, as those do that Spark and Hive write beside their
    data.
    """
    below = Below([], [])
    for info in fs.get_file_info(pafs.FileSelector(folder, recursive=True)):
        if info.type != pafs.FileType.File:
            continue
        inside = info.path.removeprefix(folder).strip("/").split("/")
        if not _is_hidden(inside):
            below.files.append(info.path)
        elif inside[-1].lower().endswith(KNOWN):
            below.skipped.append(info.path)
    return Below(sorted(below.files), sorted(below.skipped))


def _is_hidden(inside: Sequence[str]) -> bool:
    """Whether a file of this path below a folder is none of the user's data."""
    if any(part.startswith(".") or part == "__MACOSX" for part in inside):
        return True
    is_shown = inside[-1].lower().endswith((*MAPS, *ANNOTATIONS))
    return not is_shown and any(part.startswith("_") for part in inside)


def reason(error: BaseException) -> str:
    """What a library says, on one line."""
    letters = list(" ".join(str(error).split()))
    for place, letter in enumerate(letters):
        if not letter.isprintable():
            letters[place] = "?"
    return "".join(letters).rstrip(".")[:200] or type(error).__name__


def format_of(file_set: FileSet, key: str) -> Format:
    """What most of the files are by their endings. Raises UserError where that is not clear."""
    counts: Counter[Format] = Counter()
    for form, endings in ENDINGS.items():
        counts[form] = sum(name.lower().endswith(endings) for name in file_set.files)
    if counts["pictures"]:
        return "pictures"
    formats = [form for form, count in counts.items() if count]
    if len(formats) == 1:
        return formats[0]
    if not formats:
        _refuse_known(file_set, key)
    if formats:
        got = " and ".join(formats)
    else:
        got = f"{len(file_set.files)} files of another kind"
    if file_set.skipped and not formats:
        got += (
            f", beside {len(file_set.skipped)} whose names or folders begin with . or _ and are "
            f"passed over ({posixpath.basename(file_set.skipped[0])})"
        )
    raise UserError(
        f"{key}: expected files of one known kind in {file_set.shown}, got {got}. Set data.format, "
        "such as csv."
    )


def _refuse_known(file_set: FileSet, key: str) -> None:
    """Raises UserError for a file whose first bytes say what it is, so that no data.format would
    help.
    """
    for file in file_set.files[:1]:
        try:
            with file_set.fs.open_input_stream(file, compression=None) as stream:
                signature = signature_of(stream.read(HEAD))
        except (OSError, pa.ArrowException):
            return
        if signature is not None:
            raise UserError(
                f"{key}: {file}: expected a table or pictures, got {signature.what}. "
                f"{signature.advice}"
            )
