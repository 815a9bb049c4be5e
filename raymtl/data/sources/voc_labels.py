"""The labels of pictures with boxes: what the annotations of Pascal VOC say of each picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
from pydantic import Field

from raymtl.data.base import SPLITS
from raymtl.data.formats.voc_folder import Folder
from raymtl.data.formats.voc_xml import Annotation, Seen, fault, mirrored, rows_of, stacked
from raymtl.storage.notes import Note
from raymtl.types import Spec, UserError

NAMED = 5  # faults that a message names


class FoundVOC(Spec):
    """What was found in the annotations of the folder. A run keeps it."""

    settings: str
    """What it was found by; another one finds it anew."""
    classes: Annotated[tuple[str, ...], Field(min_length=1)]
    means: tuple[float, ...]
    stds: tuple[float, ...]
    """Of the number of objects of each class in a picture for training."""


class Reading(NamedTuple):
    """How annotations become labels."""

    classes: tuple[str, ...]
    size: tuple[int, int]
    """Height and width to which pictures are stretched."""
    ignore_difficult: bool
    max_corrupt: float
    """The share of pictures that may have faults."""


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

    def targets(self) -> dict[str, np.ndarray]:
        """The labels of each task."""
        return {
            "boxes": self.boxes,
            "count": np.nan_to_num(self.numbers),
            "present": self.shown,
            "main": self.main.clip(min=0),
        }

    def masks(self, is_annotated: np.ndarray) -> dict[str, np.ndarray]:
        """Which pictures have a label of each task, [N]; `is_annotated` [N]: which have boxes."""
        boxed = self.readable & is_annotated
        return {
            "boxes": boxed.copy(),
            "count": boxed & ~np.isnan(self.numbers).any(1),
            "present": self.readable & ~np.isnan(self.shown).all(1),
            "main": boxed & (self.main >= 0),
        }


def labelled_rows(
    parts: Sequence[Sequence[str]], masks: Mapping[str, np.ndarray], folder: Path
) -> dict[str, np.ndarray]:
    """The rows of each split that have a label of any task, and of each.

    `parts` are the names of the splits' pictures, which are the rows of `masks` in this order.
    Raises UserError where a split has too few.
    """
    labelled = np.any(list(masks.values()), axis=0)
    rows: dict[str, np.ndarray] = {}
    start = 0
    for split, names in zip(SPLITS, parts, strict=True):
        every = np.arange(start, start + len(names))
        start += len(names)
        of_any = rows[f"rows/{split}"] = every[labelled[every]]
        for task, mask in masks.items():
            own = rows[f"rows/{split}/{task}"] = every[mask[every]]
            if (split == "train" and not len(own)) or len(of_any) < 2:
                raise UserError(
                    f"data.tasks: expected two pictures and a label of '{task}' at least in "
                    f"{split}, got {len(of_any)} and {len(own)} of {folder}. Correct "
                    "ImageSets/Main, or leave the task away."
                )
    return rows


def read_labels(read: Folder, names: Sequence[str], reading: Reading) -> Labels:
    """The pictures of these names and what their annotations say. Raises UserError where more of
    them have faults than may.
    """
    number, num_classes = len(names), len(reading.classes)
    pictures = np.zeros((number, 3, *reading.size), np.uint8)
    boxes = [np.empty((0, 5), np.float32) for _ in names]
    numbers, shown = np.full((2, number, num_classes), np.nan, np.float32)
    main = np.full(number, -1)
    readable = np.zeros(number, bool)
    faults = _damage(read, names)
    for row, name in enumerate(names):
        try:
            pictures[row], stored = read.picture(name, reading.size)
        except OSError as error:
            file = read.pictures.get(name, read.root / "JPEGImages" / name)
            faults[name] = f"{file}: {error}"
            continue
        sound = _sound(read.annotations.get(name), stored)
        if sound.fault:
            faults[name] = f"{read.xml(name)}: {sound.fault}"
        readable[row] = name not in read.damaged and sound.fits
        if sound.objects is None:
            shown[row] = [read.says.get((label, name), np.nan) for label in reading.classes]
            continue
        boxes[row] = _boxes(sound.objects, stored, reading)
        numbers[row] = object_counts(sound.objects, reading.classes, reading.ignore_difficult)
        shown[row] = _classes_shown(numbers[row], boxes[row])
        main[row] = _main(boxes[row], num_classes)
    notes = fault_notes(faults, number, reading.max_corrupt)
    most_boxes = max([1, *(len(own) for own in boxes)])
    return Labels(pictures, stacked(boxes, most_boxes), numbers, shown, main, readable, notes)


def _boxes(objects: Sequence[Seen], stored: tuple[int, int], reading: Reading) -> np.ndarray:
    """The boxes of objects, [M, 5], in the picture as it is read."""
    ignores = reading.ignore_difficult
    return rows_of(objects, reading.classes, stored, reading.size, ignore_difficult=ignores)


def object_counts(
    objects: Sequence[Seen], classes: Sequence[str], ignore_difficult: bool
) -> np.ndarray:
    """How many objects there are of each class, [K] float32."""
    numbers = np.zeros(len(classes), np.float32)
    for seen in objects:
        if not (seen.difficult and ignore_difficult):
            numbers[classes.index(seen.label)] += 1
    return numbers


class Sound(NamedTuple):
    """What of an annotation can be used."""

    objects: list[Seen] | None
    """Those without a fault; None where there is no annotation of this picture."""
    fault: str | None
    """The last fault."""
    fits: bool
    """Whether it is of a picture of this size."""


def _sound(one: Annotation | None, stored: tuple[int, int]) -> Sound:
    """Checks an annotation against the height and width of its picture."""
    if one is None:
        return Sound(None, None, fits=True)
    if one.size not in (None, stored):
        height, width = one.size
        misfit = f"it is of a picture of {width} x {height}, got one of {stored[1]} x {stored[0]}"
        return Sound(None, misfit, fits=False)
    objects, last = [], None
    for seen in one.objects:
        why = fault(seen, stored)
        if why:
            last = why
        else:
            objects.append(seen)
    return Sound(objects, last, fits=True)


def _damage(read: Folder, names: Sequence[str]) -> dict[str, str]:
    """What is wrong with the annotations of these pictures that cannot be read."""
    damaged = [name for name in names if name in read.damaged]
    return {name: f"{read.xml(name)}: {read.damaged[name]}" for name in damaged}


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


def mirror(boxes: np.ndarray, chosen: np.ndarray, size: tuple[int, int], *, across: bool) -> None:
    """Mirrors the boxes [..., M, 5] of the chosen pictures [...] in place.

    `size` is the pictures' height and width; `across` mirrors from left to right, and else from top
    to bottom.
    """
    for place in zip(*np.nonzero(chosen), strict=True):
        boxes[place] = mirrored(boxes[place], size, across=across)
