"""`voc`: pictures with boxes in the folders of Pascal VOC (Everingham et al., 2010,
doi:10.1007/s11263-009-0275-4).
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Self

import numpy as np
import torch
from pydantic import AfterValidator, Field, NonNegativeInt, PositiveInt, model_validator

from raymtl.data.base import (
    SPLITS,
    Arrays,
    Bucket,
    ChosenTasks,
    Count,
    HeldOut,
    Members,
    Population,
    Split,
    drawn,
    each_once,
    same_domain,
)
from raymtl.data.draws import Draws, alike
from raymtl.data.formats.voc_xml import (
    Annotation,
    Seen,
    fault,
    mirrored,
    read_xml,
    rows_of,
    stacked,
)
from raymtl.schema.readers import Written
from raymtl.storage.notes import ARRAY, Note, pack
from raymtl.tasks import classification, detection, multilabel, over_places, regression
from raymtl.types import Batch, Episode, Spec, Task, UserError, matching

Share = Annotated[float, Field(ge=0, lt=1)]
VOCTask = Literal["boxes", "count", "present", "main"]
Flip = Literal["horizontal", "vertical"]
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")
NAMED = 5  # faults that a message names


class FoundVOC(Spec):
    """What was found in the annotations of the folder. A run keeps it."""

    settings: str
    """What it was found by; another one finds it anew."""
    classes: Annotated[tuple[str, ...], Field(min_length=1)]
    means: tuple[float, ...]
    stds: tuple[float, ...]
    """Of the number of objects of each class in a picture for training."""


class Labels(NamedTuple):
    """Of N pictures and K classes: `pictures` [N, 3, H, W] uint8, `boxes` [N, M, 5], `numbers` of
    objects [N, K] with nan, which classes are `shown` [N, K] with nan, the `main` class [N] or -1,
    what is `readable` [N], and the notes on what is wrong with them.
    """

    pictures: np.ndarray
    boxes: np.ndarray
    numbers: np.ndarray
    shown: np.ndarray
    main: np.ndarray
    readable: np.ndarray
    notes: Sequence[Note]


class VOC(ChosenTasks):
    """Pictures [3, height, width] and the objects in them; an episode is `shots` + `queries`
    pictures at random.

    The tasks are those of `tasks`: `boxes`, the objects with their classes (detection); `count`,
    how many there are of each class (regression of a vector); `present`, which classes there are
    (multilabel); `main`, the class that takes the most area (classification). `unboxed` is the
    share of pictures for training whose boxes are withheld; these train the other tasks alone. A
    picture without an annotation trains `present` where ImageSets/Main has CLASS_SPLIT.txt (1 and
    -1 for there or not, 0 for unknown), and is left out where it does not.

    The splits are ImageSets/Main/train.txt, val.txt and test.txt. Where val or test is missing it
    takes `held_out` of the pictures for training, or of those of trainval.txt, by chance from
    `split_seed`.

    `difficult: ignored`, as VOC is scored: such an object is neither to be found nor wrong where it
    is found, and is not counted; one alone leaves open whether its class is present. `objects`
    treats them as any other.

    `folder` is what torchvision calls `root`, the folder with VOCdevkit; if not given, the
    environment variable RAYMTL_DATA names it.
    """

    name: Literal["voc"] = "voc"
    folder: str | None = None
    year: Annotated[Written, matching(r"\d{4}", "a year of four digits")] = "2007"
    tasks: Annotated[tuple[VOCTask, ...], Field(min_length=1), AfterValidator(each_once)] = (
        "boxes",
        "count",
    )
    classes: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """In the order of their numbers; all that the annotations name, by their letters, unless given.
    """
    size: PositiveInt | tuple[PositiveInt, PositiveInt] = 96
    """Of pictures, to which they are stretched: side, or [height, width]."""
    flips: tuple[Flip, ...] = ("horizontal",)
    """By which pictures for training, and boxes with them, are turned round with odds of one half
    each.
    """
    unboxed: Share = 0.0
    difficult: Literal["ignored", "objects"] = "ignored"
    held_out: Annotated[float, Field(gt=0, lt=0.5)] = 0.15
    split_seed: NonNegativeInt = 0
    max_corrupt: Share = 0.01
    """The share of pictures that may be unreadable, or have an unreadable annotation or a box that
    cannot be.
    """
    stride: PositiveInt = 4
    """Pixels between the places that say what is there (docs/tasks.md)."""
    shots: Count = 1
    queries: PositiveInt = 8
    found: FoundVOC | None = None
    """What was found in the annotations; written by the program."""

    @model_validator(mode="after")
    def _read(self) -> Self:
        if self.classes and len(set(self.classes)) < len(self.classes):
            raise UserError(f"data.classes: expected every class once, got {list(self.classes)}.")
        if self._root is not None and (self.found is None or self.found.settings != self._settings):
            # The object is frozen for others; here it is still being made.
            self.__dict__["found"] = self._find()
        return self

    @property
    def _root(self) -> Path | None:
        root = self.folder or os.environ.get("RAYMTL_DATA")
        if root:
            return Path(root).expanduser() / "VOCdevkit" / f"VOC{self.year}"
        return None

    @property
    def _settings(self) -> str:
        parts = (
            self.folder,
            self.year,
            self.classes,
            self.difficult,
            self.held_out,
            self.split_seed,
        )
        return " ".join(str(part) for part in parts)

    @property
    def _folder(self) -> Path:
        if self._root is None:
            raise UserError(
                "data.folder: expected the folder that holds VOCdevkit, got none. Give it, or set "
                "the environment variable RAYMTL_DATA. `raymtl data fetch voc2007 --root FOLDER` "
                "fetches Pascal VOC; pictures of your own go to VOCdevkit/VOC2007/JPEGImages, "
                "their XML to Annotations."
            )
        return self._root

    def _find(self) -> FoundVOC:
        read = read_folder(self._folder)
        named = sorted({seen.label for one in read.annotations.values() for seen in one.objects})
        classes = self.classes or tuple(named)
        if not classes:
            raise UserError(
                f"data.folder: expected annotations with objects in {self._folder}, got none."
            )
        for name, one in read.annotations.items():
            for seen in one.objects:
                if seen.label not in classes:
                    raise UserError(
                        f"{read.xml(name)}: expected an object of {list(classes)}, got "
                        f"'{seen.label}'. Correct it, or add it to data.classes."
                    )
        parts = self._parts(read)
        numbers = [
            self._counts(read.annotations[name].objects, classes)
            for name in parts[0]
            if name in read.annotations
        ]
        if not numbers:
            raise UserError(
                f"data.folder: expected annotated pictures for training in {self._folder}, got "
                "none."
            )
        table = np.stack(numbers)
        return FoundVOC(
            settings=self._settings,
            classes=classes,
            means=tuple(table.mean(0).tolist()),
            stds=tuple(float(std) or 1.0 for std in table.std(0)),
        )

    @property
    def _known(self) -> FoundVOC:
        if self.found is None:
            return self._find()
        return self.found

    def class_names(self, task: str) -> tuple[str, ...]:
        return self._known.classes

    @property
    def _size(self) -> tuple[int, int]:
        if isinstance(self.size, tuple):
            return self.size
        return (self.size, self.size)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (3, *self._size)

    def make_tasks(self) -> tuple[Task, ...]:
        found = self._known
        number = len(found.classes)
        kinds = {
            "boxes": lambda: detection("boxes", number, self._size, stride=self.stride),
            "count": lambda: over_places(regression("count", found.means, found.stds)),
            "present": lambda: over_places(multilabel("present", number)),
            "main": lambda: over_places(classification("main", number)),
        }
        return tuple(kinds[name]() for name in self.tasks)

    def _parts(self, read: "Folder") -> list[list[str]]:
        """The names of the pictures for training, validation and testing."""
        sets = read.sets
        every = sets.get("train") or sets.get("trainval") or list(read.pictures)
        known = {split: sets[split] for split in ("val", "test") if split in sets}
        if "train" not in sets:
            held = {name for names in known.values() for name in names}
            every = [name for name in every if name not in held]
        order = np.random.default_rng(self.split_seed).permutation(len(every)).tolist()
        share, start = round(self.held_out * len(every)), 0
        for split in ("val", "test"):
            if split not in known:
                known[split] = [every[index] for index in sorted(order[start : start + share])]
                start += share
        train = [every[index] for index in sorted(order[start:])]
        parts = [train, known["val"], known["test"]]
        side: dict[str, str] = {}
        for split, names in zip(SPLITS, parts, strict=True):
            for name in names:
                if side.setdefault(name, split) != split:
                    raise UserError(
                        f"{read.root}/ImageSets/Main/{split}.txt: expected pictures of no other "
                        f"split, got '{name}', which is in {side[name]} too. Leave it in one of "
                        "them."
                    )
        return parts

    def _counts(self, objects: Sequence[Seen], classes: Sequence[str]) -> np.ndarray:
        numbers = np.zeros(len(classes), np.float32)
        for seen in objects:
            numbers[classes.index(seen.label)] += not (
                seen.difficult and self.difficult == "ignored"
            )
        return numbers

    def load(self) -> dict[str, np.ndarray]:
        read = read_folder(self._folder)
        parts = self._parts(read)
        names = [name for own in parts for name in own]
        seen = self._seen(read, names)
        boxed = seen.readable & np.isin(names, list(read.annotations))
        number = len(parts[0])
        withheld = np.random.default_rng([self.split_seed, 1]).permutation(number)[
            : round(self.unboxed * number)
        ]
        masks = {
            "boxes": boxed.copy(),
            "count": boxed & ~np.isnan(seen.numbers).any(1),
            "present": seen.readable & ~np.isnan(seen.shown).all(1),
            "main": boxed & (seen.main >= 0),
        }
        masks["boxes"][withheld] = False
        targets = {
            "boxes": seen.boxes,
            "count": np.nan_to_num(seen.numbers),
            "present": seen.shown,
            "main": seen.main.clip(min=0),
        }
        arrays = {"pictures": seen.pictures, "names": np.array(names), **self._rows(parts, masks)}
        arrays[ARRAY] = pack(seen.notes)
        for task in self.tasks:
            arrays[f"target/{task}"], arrays[f"mask/{task}"] = targets[task], masks[task]
        return arrays

    def _seen(self, read: "Folder", names: Sequence[str]) -> "Labels":
        """The pictures of these names and what their annotations say; raises UserError for too many
        faults.
        """
        classes, size = self._known.classes, self._size
        pictures = np.zeros((len(names), 3, *size), np.uint8)
        faults = _damage(read, names)
        boxes: list[np.ndarray] = []
        numbers, shown = np.full((2, len(names), len(classes)), np.nan, np.float32)
        main = np.full(len(names), -1)
        readable = np.zeros(len(names), bool)
        for row, name in enumerate(names):
            try:
                pictures[row], stored = read.picture(name, size)
            except OSError as error:
                faults[name] = (
                    f"{read.pictures.get(name, read.root / 'JPEGImages' / name)}: {error}"
                )
                boxes.append(np.empty((0, 5), np.float32))
                continue
            one = read.annotations.get(name)
            misfit = _misfit(one, stored)
            if misfit:
                faults[name] = f"{read.xml(name)}: {misfit}"
                one = None
            readable[row] = name not in read.damaged and misfit is None
            sound, why = _sound_objects(one, stored)
            if why:
                faults[name] = f"{read.xml(name)}: {why}"
            ignored = self.difficult == "ignored"
            boxes.append(rows_of(sound, classes, stored, size, ignore_difficult=ignored))
            if one is not None:
                numbers[row] = self._counts(sound, classes)
                shown[row] = _classes_shown(numbers[row], boxes[-1])
                main[row] = _main(boxes[-1], len(classes))
            else:
                shown[row] = [read.says.get((label, name), np.nan) for label in classes]
        notes = fault_notes(faults, len(names), self.max_corrupt)
        most_boxes = max([1, *(len(own) for own in boxes)])
        return Labels(pictures, stacked(boxes, most_boxes), numbers, shown, main, readable, notes)

    def _rows(
        self, parts: Sequence[Sequence[str]], masks: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """The rows of each split that have a label of any task, and of each. Raises UserError where
        these are none.
        """
        labelled = np.any([masks[task] for task in self.tasks], axis=0)
        rows: dict[str, np.ndarray] = {}
        start = 0
        for split, names in zip(SPLITS, parts, strict=True):
            every = np.arange(start, start + len(names))
            start += len(names)
            rows[f"rows/{split}"] = every[labelled[every]]
            for task in self.tasks:
                own = rows[f"rows/{split}/{task}"] = every[masks[task][every]]
                if (split == "train" and not len(own)) or len(rows[f"rows/{split}"]) < 2:
                    raise UserError(
                        f"data.tasks: expected two pictures and a label of '{task}' at least in "
                        f"{split}, got {len(rows[f'rows/{split}'])} and {len(own)} of "
                        f"{self._folder}. Correct ImageSets/Main, or leave the task away."
                    )
        return rows

    def sizes(self, arrays: Arrays) -> Mapping[str, int]:
        return {task: len(arrays[f"rows/train/{task}"]) for task in self.tasks}

    @property
    def about_episodes(self) -> str:
        return (
            f"{self.shots} pictures to adapt to and {self.queries} to predict of the split, drawn "
            "at random"
        )

    def populations(self, arrays: Arrays, split: Split) -> tuple[Population, ...]:
        return (Population("picture", len(arrays[f"rows/{split}"])),)

    def query_members(self, arrays: Arrays, split: Split, draws: Draws) -> Mapping[str, Members]:
        ((_, rows, shots),) = self._draw(arrays, split, draws)
        pictures = np.searchsorted(arrays[f"rows/{split}"], rows[0, shots:])
        return {task: {"picture": pictures} for task in self.tasks}

    def every_example(self, arrays: Arrays, split: Split) -> tuple[HeldOut, ...]:
        rows = arrays[f"rows/{split}"]
        members = {"picture": np.arange(len(rows))}
        return (HeldOut(rows, members, lambda some: self.batch(arrays, some)),)

    def _draw(
        self, arrays: Arrays, split: Split, draws: Draws
    ) -> Iterator[tuple[Draws, np.ndarray, int]]:
        """Of the episodes that are alike: their generators, the rows of all their pictures [E, N],
        and how many of these are the support.
        """
        # Of a single task, all of them labelled, so that it has as many labels as are drawn.
        labelled = arrays[f"rows/{split}/{self.tasks[0]}"]
        if len(self.tasks) == 1 and len(labelled) > 1:
            rows = labelled
        else:
            rows = arrays[f"rows/{split}"]
        for own, (shots,) in alike(draws, drawn(self.shots, draws)):
            number = min(len(rows), shots + self.queries)
            yield own, rows[own.choice(len(rows), number)], min(shots, number - 1)

    def draw_episodes(self, arrays: Arrays, split: Split, draws: Draws) -> Iterator[Bucket]:
        for own, rows, shots in self._draw(arrays, split, draws):
            flips: dict[Flip, np.ndarray] = {}
            if split == "train":
                flips = {flip: own.coins(rows.shape[1]) for flip in self.flips}
            support, query = (
                self.batch(
                    arrays, rows[:, part], {flip: own[:, part] for flip, own in flips.items()}
                )
                for part in (slice(shots), slice(shots, None))
            )
            domains = same_domain(f"VOC{self.year}", len(own))
            yield Bucket(Episode(support, query), own.indices, domains)

    def batch(
        self, arrays: Arrays, rows: np.ndarray, flips: Mapping[Flip, np.ndarray] = {}
    ) -> Batch:
        """The pictures with these numbers [...]; `flips` says which of them are flipped, [...]."""
        pictures = arrays["pictures"][rows]
        targets = {task: arrays[f"target/{task}"][rows] for task in self.tasks}
        for flip, is_flipped in flips.items():
            across = flip == "horizontal"
            pictures[is_flipped] = np.flip(pictures[is_flipped], -1 if across else -2)
            if "boxes" in targets:
                for place in zip(*np.nonzero(is_flipped), strict=True):
                    boxes = targets["boxes"][place]
                    targets["boxes"][place] = mirrored(boxes, self._size, across=across)
        masks = {task: arrays[f"mask/{task}"][rows] for task in self.tasks}
        return Batch(
            torch.from_numpy(pictures),
            {task: torch.from_numpy(target) for task, target in targets.items()},
            {task: torch.from_numpy(mask) for task, mask in masks.items()},
        )


def _damage(read: "Folder", names: Sequence[str]) -> dict[str, str]:
    """What is wrong with the annotations of these pictures that cannot be read."""
    damaged = [name for name in names if name in read.damaged]
    return {name: f"{read.xml(name)}: {read.damaged[name]}" for name in damaged}


def _misfit(one: Annotation | None, stored: tuple[int, int]) -> str | None:
    """How the size that an annotation gives differs from its picture's; None where it fits."""
    if one is None or one.size in (None, stored):
        return None
    return (
        f"it is of a picture of {one.size[1]} x {one.size[0]}, got one of {stored[1]} x {stored[0]}"
    )


def _sound_objects(
    one: Annotation | None, stored: tuple[int, int]
) -> tuple[list[Seen], str | None]:
    """The objects without a fault, and the last fault of the others."""
    sound, last = [], None
    for seen in one.objects if one else ():
        why = fault(seen, stored)
        if why:
            last = why
        else:
            sound.append(seen)
    return sound, last


def _classes_shown(numbers: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Which classes a picture shows, [K]: 1, 0, or nan where all objects of a class are ignored."""
    is_ignored = np.isin(-2 - np.arange(len(numbers)), boxes[:, 0])
    return np.where(numbers > 0, 1, np.where(is_ignored, np.nan, 0))


def _main(boxes: np.ndarray, num_classes: int) -> int:
    """The class whose boxes [M, 5] have the largest area together, the first of those; -1 where
    there is none.
    """
    areas = np.zeros(num_classes)
    for label, x1, y1, x2, y2 in boxes[boxes[:, 0] >= 0]:
        areas[int(label)] += (x2 - x1) * (y2 - y1)
    if areas.any():
        return int(areas.argmax())
    return -1


def fault_notes(faults: Mapping[str, str], number: int, allowed: float) -> list[Note]:
    """Which of this number of pictures have faults. Raises UserError where there are more than this
    share.
    """
    if not faults:
        return []
    told = list(faults.values())
    named = "; ".join(told[:NAMED]) + (f" and {len(told) - NAMED} more" * (len(told) > NAMED))
    says = f"{len(told)} of {number} pictures have faults: {named}"
    if len(told) > allowed * number:
        raise UserError(
            f"data.max_corrupt: {says}, which is over {allowed:.1%} of them. Correct them, or "
            "raise it."
        )
    return [
        Note(
            place="pictures",
            text=f"{says}; these boxes or pictures are left out",
            key="data.max_corrupt",
        )
    ]


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
    value = {"1": 1.0, "-1": 0.0, "0": np.nan}
    for file in sorted((root / "ImageSets" / "Main").glob("*.txt")):
        lines = [
            line.split() for line in file.read_text(encoding="utf8").splitlines() if line.strip()
        ]
        label, _, _ = file.stem.rpartition("_")
        if not label:
            sets[file.stem] = [line[0] for line in lines]
            continue
        for line in lines:
            if len(line) != 2 or line[1] not in value:
                raise UserError(
                    f"{file}: expected a name and 1, 0 or -1 in every line, got '{' '.join(line)}'."
                )
            says[label, line[0]] = value[line[1]]
    return Folder(root, pictures, annotations, damaged, sets, says)
