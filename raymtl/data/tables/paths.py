"""Where files are: on a disk, behind a pattern, below a folder or at a URL."""

import glob
import os
import posixpath
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.fs as pafs

from raymtl.data.tables.columns import SUFFIXES
from raymtl.data.tables.contents import HEAD, signature_of
from raymtl.data.tables.schema import Format
from raymtl.storage.redaction import holds_secret, redacted
from raymtl.types import UserError

ENDINGS: Mapping[Format, tuple[str, ...]] = {
    "parquet": (".parquet", ".pq"),
    "csv": (".csv", ".tsv", ".csv.gz", ".tsv.gz", ".csv.bz2", ".csv.zst"),
    "arff": (".arff", ".arff.gz"),
    "mat": (".mat",),
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


def absolute(path: str, key: str) -> str:
    """The path from the root of the disk; a URL, or the variable that holds it, as it is. Raises
    UserError.

    A configuration is kept and shown: a URL's password or signature has to come from the
    environment at every reading.
    """
    found = _expanded(path, key)
    if "://" not in found:
        return os.path.abspath(found)
    if holds_secret(re.sub(r"\$\{?\w+\}?", "", path)):
        raise UserError(
            f"{key}: expected the password or signature in an environment variable, as in "
            f"$MY_DATA_URL, got it in {redacted(path)} itself, which config.yaml would keep. Set "
            "the variable to the URL, and give its name."
        )
    return path


def _expanded(path: str, key: str) -> str:
    if "://" not in path and _is_there(path):
        return path
    found = os.path.expanduser(os.path.expandvars(path))
    if "$" in found and not ("://" not in found and _is_there(found)):
        name = found.partition("$")[2].partition("/")[0].strip("{}")
        raise UserError(
            f"{key}: expected the environment variable {name} to be set, got none: {path}. Set it."
        )
    return found


def _is_there(path: str) -> bool:
    """Whether there is such a file or folder, or such a folder below which a pattern begins; `$` is
    in some names.
    """
    fixed, star, _ = path.partition("*")
    return os.path.lexists(os.path.dirname(fixed) if star and "$" in fixed else path)


def locate(path: str, key: str) -> FileSet:
    """The files that a path, a pattern, a folder or a URL means, in the order of their names.
    Raises UserError.
    """
    shown, path = path, _expanded(path, key)
    try:
        if "://" not in path:
            fs: pafs.FileSystem = pafs.LocalFileSystem()
            if not os.path.exists(path) and glob.has_magic(path):
                found = sorted(glob.glob(path, recursive=True))
            else:
                found = []
            if not found and not os.path.exists(path):
                raise UserError(
                    f"{key}: expected a file, a folder or a URL, got {shown}, where there is none."
                )
            root = path
        else:
            fs, root = _remote(path)
            found = []
            if any(mark in root for mark in "*?["):
                fixed = root[: min(root.index(mark) for mark in "*?[" if mark in root)].rpartition(
                    "/"
                )[0]
                found = [name for name in files_below(fs, fixed).files if Path(name).match(root)]
                root = fixed
        files: list[str] = []
        skipped: list[str] = []
        for name in found or [root]:
            info = fs.get_file_info(name)
            if info.type == pafs.FileType.NotFound:
                raise UserError(
                    f"{key}: expected a file, a folder or a URL, got {shown}, where there is none."
                )
            if info.type == pafs.FileType.Directory:
                below = files_below(fs, name)
            else:
                below = Below([name], [])
            files += below.files
            skipped += below.skipped
    except (OSError, ImportError, ValueError, pa.ArrowException) as error:
        raise UserError(
            f"{key}: {shown} cannot be read ({redacted(reason(error))}). Correct it, or see to the "
            "access."
        ) from None
    if len(files) != 1 or files[0] != root:
        folder = root
    else:
        folder = posixpath.dirname(root)
    if found and "://" not in path:
        folder = os.path.commonpath([os.path.dirname(name) for name in found])
    return FileSet(fs, tuple(files), folder, shown, tuple(skipped))


def _remote(url: str) -> tuple[pafs.FileSystem, str]:
    """pyarrow's own file systems first, which read without the lock of Python; else those of
    fsspec.
    """
    try:
        fs, root = pafs.FileSystem.from_uri(url)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        import fsspec

        found, root = fsspec.core.url_to_fs(url)
        fs = pafs.PyFileSystem(pafs.FSSpecHandler(found))
    return fs, root


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
    letters = (letter if letter.isprintable() else "?" for letter in " ".join(str(error).split()))
    return "".join(letters).rstrip(".")[:200] or type(error).__name__


def format_of(file_set: FileSet, key: str) -> Format:
    """What most of the files are by their endings. Raises UserError where that is not clear."""
    counts = {
        form: sum(name.lower().endswith(endings) for name in file_set.files)
        for form, endings in ENDINGS.items()
    }
    if counts["pictures"]:
        return "pictures"
    found = [form for form, count in counts.items() if count]
    if len(found) == 1:
        return found[0]
    if not found:
        _refuse_known(file_set, key)
    if found:
        got = " and ".join(found)
    else:
        got = f"{len(file_set.files)} files of another kind"
    if file_set.skipped and not found:
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
                found = signature_of(stream.read(HEAD))
        except (OSError, pa.ArrowException):
            return
        if found is not None:
            raise UserError(
                f"{key}: {file}: expected a table or pictures, got {found.what}. {found.advice}"
            )


def key_of(name: str) -> str:
    """The name of a file in the form that names are compared in."""
    return unicodedata.normalize("NFC", name.replace("\\", "/").strip().removeprefix("./"))


class Listing:
    """The files of a place, to be found by their names."""

    def __init__(self, file_set: FileSet) -> None:
        self.file_set = file_set
        self.by_path = {
            key_of(file.removeprefix(file_set.root).strip("/")): file for file in file_set.files
        }
        self.by_name: dict[str, str | None] = {}
        for path, file in self.by_path.items():
            alone = path.rpartition("/")[2]
            if alone in self.by_name:
                self.by_name[alone] = None
            else:
                self.by_name[alone] = file

    def found(self, names: Iterable[str | None]) -> list[str | None]:
        """The files of these names, each below the place or of this name anywhere in it; None
        without.
        """
        keys = [None if name is None else key_of(name) for name in names]
        return [
            None
            if key is None
            else self.by_path.get(key) or self.by_name.get(key.rpartition("/")[2])
            for key in keys
        ]


def stems_below(file_set: FileSet) -> dict[str, str]:
    """Name without folders and ending -> file, of maps; of a pattern such as `*_mask.png` what the
    star stands for.

    Those in folders have their path below the place too. A name that two files have is none.
    """
    before, star, after = posixpath.basename(file_set.shown).partition("*")
    named: dict[str, str] = {}
    twice: set[str] = set()
    for file in file_set.files:
        if not file.lower().endswith(MAPS):
            continue
        path = key_of(file.removeprefix(file_set.root).strip("/"))
        folder, _, name = path.rpartition("/")
        if star and name.startswith(before) and name.endswith(after):
            stem = name[len(before) : len(name) - len(after)]
        else:
            stem = name.rpartition(".")[0]
        for key in {stem, f"{folder}/{stem}".lstrip("/")}:
            if named.setdefault(key, file) != file:
                twice.add(key)
    return {key: file for key, file in named.items() if key not in twice}
