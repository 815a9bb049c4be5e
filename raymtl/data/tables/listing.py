"""Files found by their names, as tables and maps write them."""

import posixpath
import unicodedata
from collections.abc import Iterable

from raymtl.data.tables.paths import MAPS, FileSet


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
        return [self._file(name) for name in names]

    def _file(self, name: str | None) -> str | None:
        if name is None:
            return None
        key = key_of(name)
        return self.by_path.get(key) or self.by_name.get(key.rpartition("/")[2])


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
