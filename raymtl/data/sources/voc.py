"""`voc`: pictures with boxes in the folders of Pascal VOC (Everingham et al., 2010,
doi:10.1007/s11263-009-0275-4).
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
import torch
from pydantic import AfterValidator, Field, NonNegativeInt, PositiveInt, model_validator

from raymtl.data.base import (
    Arrays,
    Bucket,
    ChosenTasks,
    HeldOut,
    Members,
    Population,
    Split,
    same_domain,
)
from raymtl.data.counts import Count, drawn
from raymtl.data.draws import Draws, alike
from raymtl.data.formats.voc_folder import read_folder, split_names
from raymtl.data.given import each_once
from raymtl.data.source_messages import unresolved
from raymtl.data.sources.voc_labels import (
    FoundVOC,
    Reading,
    labelled_rows,
    mirror,
    object_counts,
    read_labels,
)
from raymtl.schema.readers import Written
from raymtl.storage.notes import ARRAY, pack
from raymtl.tasks import classification, detection, multilabel, over_places, regression
from raymtl.types import Batch, Episode, Task, UserError, matching

Share = Annotated[float, Field(ge=0, lt=1)]
VOCTask = Literal["boxes", "count", "present", "main"]
Flip = Literal["horizontal", "vertical"]


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
    def _consistent(self) -> Self:
        if self.classes and len(set(self.classes)) < len(self.classes):
            raise UserError(f"data.classes: expected every class once, got {list(self.classes)}.")
        is_elsewhere = self.found is not None and self.found.settings != self._settings
        if self._root is not None and is_elsewhere:
            # The object is frozen for others; here it is still being made.
            self.__dict__["found"] = None
        return self

    @property
    def is_resolved(self) -> bool:
        return self.found is not None

    def resolve(self) -> Self:
        if self.is_resolved:
            return self
        return self.model_copy(update={"found": self._find()})

    @property
    def _root(self) -> Path | None:
        root = self.folder or os.environ.get("RAYMTL_DATA")
        if root:
            return Path(root).expanduser() / "VOCdevkit" / f"VOC{self.year}"
        return None

    @property
    def _settings(self) -> str:
        keys = ("folder", "year", "classes", "difficult", "held_out", "split_seed")
        return " ".join(str(getattr(self, key)) for key in keys)

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
        parts = split_names(read, self.held_out, self.split_seed)
        numbers = [
            object_counts(read.annotations[name].objects, classes, self._ignores_difficult)
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
            raise unresolved()
        return self.found

    def class_names(self, task: str) -> tuple[str, ...]:
        return self._known.classes

    @property
    def _ignores_difficult(self) -> bool:
        return self.difficult == "ignored"

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

    def load(self) -> dict[str, np.ndarray]:
        read = read_folder(self._folder)
        parts = split_names(read, self.held_out, self.split_seed)
        names = [name for own in parts for name in own]
        reading = Reading(
            self._known.classes, self._size, self._ignores_difficult, self.max_corrupt
        )
        seen = read_labels(read, names, reading)
        masks = seen.masks(np.isin(names, list(read.annotations)))
        number = len(parts[0])
        withheld = np.random.default_rng([self.split_seed, 1]).permutation(number)
        masks["boxes"][withheld[: round(self.unboxed * number)]] = False
        targets = seen.targets()
        rows = labelled_rows(parts, {task: masks[task] for task in self.tasks}, self._folder)
        arrays = {"pictures": seen.pictures, "names": np.array(names), **rows}
        arrays[ARRAY] = pack(seen.notes)
        for task in self.tasks:
            arrays[f"target/{task}"], arrays[f"mask/{task}"] = targets[task], masks[task]
        return arrays

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
                mirror(targets["boxes"], is_flipped, self._size, across=across)
        masks = {task: arrays[f"mask/{task}"][rows] for task in self.tasks}
        return Batch(
            torch.from_numpy(pictures),
            {task: torch.from_numpy(target) for task, target in targets.items()},
            {task: torch.from_numpy(mask) for task, mask in masks.items()},
        )
