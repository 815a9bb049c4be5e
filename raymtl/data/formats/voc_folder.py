"""The folders of Pascal VOC: JPEGImages, Annotations and ImageSets/Main."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from raymtl.data.base import SPLITS
from raymtl.data.formats.voc_xml import Annotation, read_xml
from raymtl.types import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")
PRESENT = {"1": 1.0, "-1": 0.0, "0": np.nan}
"""What a line of CLASS_SPLIT.txt says of a picture -> whether the class is present in it."""


class Folder(NamedTuple):
    """A folder of Pascal VOC, other than the pictures' contents."""

    root: Path
    pictures: Mapping[str, Path]
    """Name without suffix -> file."""
    annotations: Mapping[str, Annotation]
    damaged: Mapping[str, str]
    """Annotations that cannot be read, and why."""
    sets: Mapping[str, list[str]]
    """train, val, test and trainval, those that there are -> names."""
    says: Mapping[tuple[str, str], float]
    """Class and name -> 1 where it is present, 0 where not, nan where that is open."""

    def xml(self, name: str) -> Path:
        """The annotation of a picture."""
        return self.root / "Annotations" / f"{name}.xml"

    def picture(self, name: str, size: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int]]:
        """The picture as uint8 [3, *size], and its height and width as it is stored. Raises
        OSError.
        """
        from raymtl.data.tables.pictures import measured

        if name not in self.pictures:
            raise OSError("no such picture")
        return measured(self.pictures[name].read_bytes(), size, 3, "stretch")[:2]


@cache
def read_folder(root: Path) -> Folder:
    """Annotations and lists, kept for the rest of the process. Raises UserError where the folders
    are not there.
    """
    for part in ("JPEGImages", "Annotations"):
        if not (root / part).is_dir():
            raise UserError(
                f"data.folder: expected the folder {root / part}, got none. "
                "`raymtl data fetch voc2007 --root FOLDER` fetches Pascal VOC."
            )
    files = sorted((root / "JPEGImages").iterdir())
    pictures = {file.stem: file for file in files if file.suffix.lower() in SUFFIXES}
    annotations, damaged = {}, {}
    for file in sorted((root / "Annotations").glob("*.xml")):
        try:
            annotations[file.stem] = read_xml(file.read_bytes())
        except (ValueError, OSError) as error:
            damaged[file.stem] = str(error)
    sets: dict[str, list[str]] = {}
    says: dict[tuple[str, str], float] = {}
    for file in sorted((root / "ImageSets" / "Main").glob("*.txt")):
        lines = _words(file)
        label, _, _ = file.stem.rpartition("_")
        if label:
            says |= {(label, name): value for name, value in _presence(file, lines).items()}
        else:
            sets[file.stem] = [line[0] for line in lines]
    return Folder(root, pictures, annotations, damaged, sets, says)


def _words(file: Path) -> list[list[str]]:
    """The words of each line that has any."""
    lines = file.read_text(encoding="utf8").splitlines()
    return [line.split() for line in lines if line.strip()]


def _presence(file: Path, lines: list[list[str]]) -> dict[str, float]:
    """Name -> whether the class of this file is present."""
    present: dict[str, float] = {}
    for line in lines:
        if len(line) != 2 or line[1] not in PRESENT:
            raise UserError(
                f"{file}: expected a name and 1, 0 or -1 in every line, got '{' '.join(line)}'."
            )
        present[line[0]] = PRESENT[line[1]]
    return present


def split_names(read: Folder, held_out: float, split_seed: int) -> list[list[str]]:
    """The names of the pictures for training, validation and testing.

    Where the lists lack one of the last two, it gets the share `held_out` of those for training.
    Raises UserError for a picture in two splits.
    """
    sets = read.sets
    every = sets.get("train") or sets.get("trainval") or list(read.pictures)
    known = {split: sets[split] for split in ("val", "test") if split in sets}
    if "train" not in sets:
        held = {name for names in known.values() for name in names}
        every = [name for name in every if name not in held]
    order = np.random.default_rng(split_seed).permutation(len(every)).tolist()
    share, start = round(held_out * len(every)), 0
    for split in ("val", "test"):
        if split not in known:
            known[split] = [every[index] for index in sorted(order[start : start + share])]
            start += share
    train = [every[index] for index in sorted(order[start:])]
    parts = [train, known["val"], known["test"]]
    _check_disjoint(read, parts)
    return parts


def _check_disjoint(read: Folder, parts: list[list[str]]) -> None:
    split_of: dict[str, str] = {}
    for split, names in zip(SPLITS, parts, strict=True):
        for name in names:
            if split_of.setdefault(name, split) != split:
                raise UserError(
                    f"{read.root}/ImageSets/Main/{split}.txt: expected pictures of no other "
                    f"split, got '{name}', which is in {split_of[name]} too. Leave it in one of "
                    "them."
                )
