"""`cifar100`: small pictures of 100 classes in 20 superclasses (Krizhevsky, 2009), in the layout of
torchvision.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import AfterValidator, Field, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor

from raymtl.data.base import (
    SPLITS,
    Arrays,
    Bucket,
    DrawnSource,
    HeldOut,
    Members,
    Population,
    Split,
    same_domain,
)
from raymtl.data.counts import Count, Ways, drawn, most
from raymtl.data.draws import Draws, alike
from raymtl.data.formats.cifar100 import (
    CLASSES,
    COARSE,
    FOLDER,
    PARTS,
    SIDE,
    SUPERCLASSES,
    read_pictures,
)
from raymtl.data.given import data_folder, each_once
from raymtl.data.random_crops import random_crops
from raymtl.data.sources.cifar100_episodes import (
    class_names,
    labels_of,
    places_of_superclass,
    split_off_support,
)
from raymtl.data.sources.cifar100_splits import NUM_CLASSES, FewShotSplit, classes_of_splits
from raymtl.tasks import classification
from raymtl.types import Batch, Task, UserError

TASK = "class"  # of few-shot episodes
Episodes = Literal["superclasses", "fine_and_coarse", "classes"]
TASKS: Mapping[Episodes, tuple[str, ...]] = {
    "superclasses": COARSE,
    "fine_and_coarse": ("fine", "coarse"),
    "classes": (TASK,),
}


class CIFAR100(DrawnSource):
    """Pictures [3, 32, 32] in colour, in one of three forms.

    `episodes: superclasses`: a task for each of the 20 superclasses, which of its 5 classes it is.
    Every task has inputs of its own, `shots` and `queries` pictures of its classes, drawn with
    equal odds. `episodes: fine_and_coarse`: `shots` and `queries` pictures of any class; which of
    100 it is, `fine`, and of which superclass, `coarse`. In both forms `held_out` pictures of each
    class, drawn from those for training by `split_seed`, are for validation; the test is the test
    set. `episodes: classes`: few-shot learning; the one task, `class`, is which of `ways` classes
    it is, of each of which there are `shots` and `queries` pictures. The classes of the splits are
    disjoint, as `split` has them: `cifar_fs` 64, 16 and 20 classes, `fc100` 12, 4 and 4
    superclasses. A class has its 600 pictures, those of the test set too.

    `tasks` are some of the tasks of the form, all by default. No picture comes twice in a task of
    an episode. With `augment` pictures of training episodes are padded by 4 black pixels, cropped
    at random and flipped at even odds.

    `folder` is what torchvision calls `root`, the folder with `cifar-100-python`; if not given, the
    environment variable RAYMTL_DATA names it.
    """

    input_array: ClassVar[str] = "pictures"
    name: Literal["cifar100"] = "cifar100"
    folder: str | None = None
    episodes: Episodes = "superclasses"
    tasks: Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(each_once)] | None = None
    split: FewShotSplit = "cifar_fs"
    split_seed: NonNegativeInt = 0
    held_out: PositiveInt = 50
    ways: Ways = 5
    shots: Count = 1
    queries: PositiveInt = 15
    augment: bool = True

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        known = TASKS[self.episodes]
        unknown = [name for name in self.task_names if name not in known]
        if unknown:
            raise UserError(
                f"data.tasks: expected some of {', '.join(known)}, which data.episodes: "
                f"{self.episodes} has, got '{unknown[0]}'. Correct the name."
            )
        if self.held_out >= PARTS["train"]:
            raise UserError(
                f"data.held_out: expected at most {PARTS['train'] - 1} of the {PARTS['train']} "
                f"pictures of a class, for training needs one, got {self.held_out}. Lower "
                "data.held_out."
            )
        fewest = min(NUM_CLASSES[self.split].values())
        if self.episodes == "classes" and most(self.ways) > fewest:
            raise UserError(
                f"data.ways: expected at most the {fewest} classes of the smallest split, got "
                f"{self.ways}. Lower data.ways."
            )
        pictures = self._fewest_pictures
        if most(self.shots) + self.queries > pictures:
            raise UserError(
                f"data.queries: expected at most {pictures} pictures together with data.shots: "
                f"{self.shots}, for the smallest split has no more, got {self.queries}. Lower one "
                "of them."
            )
        return self

    @property
    def _fewest_pictures(self) -> int:
        """Of a split, in one draw."""
        if self.episodes == "classes":
            return sum(PARTS.values())
        of_class = min(PARTS["train"] - self.held_out, self.held_out, PARTS["test"])
        return of_class * (CLASSES // SUPERCLASSES if self.episodes == "superclasses" else CLASSES)

    @property
    def task_names(self) -> tuple[str, ...]:
        return self.tasks or TASKS[self.episodes]

    def select_tasks(self, names: tuple[str, ...]) -> Self:
        if names == self.task_names:
            return self
        return self.model_copy(update={"tasks": names})

    @property
    def _most_queries(self) -> int:
        return self._fewest_pictures - 1

    def make_tasks(self) -> tuple[Task, ...]:
        sizes = dict.fromkeys(COARSE, CLASSES // SUPERCLASSES)
        sizes |= {"fine": CLASSES, "coarse": SUPERCLASSES}
        few_shot = self.episodes == "classes"
        return tuple(
            classification(name, sizes.get(name, most(self.ways)), few_shot=few_shot)
            for name in self.task_names
        )

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (3, SIDE, SIDE)

    def load(self) -> dict[str, np.ndarray]:
        read = read_pictures(data_folder(self.folder, FOLDER, "cifar100"))
        of_training, of_test = (read.members[part] for part in PARTS)  # [100, pictures]
        arrays = {"pictures": read.pictures, "coarse": read.coarse}
        if self.episodes == "classes":
            everything = np.concatenate([of_training, of_test], 1)
            classes = classes_of_splits(read, self.split)
            names = {f"names/{split}": read.names[own] for split, own in classes.items()}
            return arrays | names | {split: everything[own] for split, own in classes.items()}
        shuffled = np.random.default_rng(self.split_seed).permuted(of_training, axis=1)
        held_out, rest = np.split(shuffled, [self.held_out], axis=1)
        return arrays | dict(zip(SPLITS, (rest, held_out, of_test), strict=True))

    def sizes(self, arrays: Arrays) -> Mapping[str, int]:
        num_classes, of_class = arrays["train"].shape
        if self.episodes == "superclasses":
            num_classes = CLASSES // SUPERCLASSES
        return dict.fromkeys(self.task_names, num_classes * of_class)

    @property
    def about_episodes(self) -> str:
        if self.episodes == "classes":
            return (
                f"{self.ways} classes, {self.shots} pictures of each to adapt to, {self.queries} "
                "to predict"
            )
        each = "of each task" if self.episodes == "superclasses" else "of any class"
        return (
            f"{self.shots} pictures {each} to adapt to and {self.queries} to predict, drawn at "
            "random"
        )

    def populations(self, arrays: Arrays, split: Split) -> tuple[Population, ...]:
        if self.episodes == "classes":
            return (Population("class", len(arrays[split]), whole=True),)
        return (Population("picture", arrays[split].size),)

    def query_members(self, arrays: Arrays, split: Split, draws: Draws) -> Mapping[str, Members]:
        if self.episodes == "classes":
            ((_, classes, _),) = self._draw_classes(arrays, split, draws)
            of_query = np.tile(classes[0], (classes.shape[1] * self.queries, 1))
            return {TASK: {"class": of_query}}
        ((own, shots),) = self._by_shots(draws)
        chosen = self._choose(arrays, split, shots + self.queries, own)
        return {name: {"picture": places[0, shots:]} for name, places in chosen.items()}

    def every_example(self, arrays: Arrays, split: Split) -> tuple[HeldOut, ...]:
        if self.episodes == "classes":
            return ()
        everything = np.arange(arrays[split].size)
        if self.episodes == "fine_and_coarse":
            return (self._section(arrays, split, everything, self.task_names),)
        return tuple(
            self._section(arrays, split, places_of_superclass(arrays, split, name), (name,))
            for name in self.task_names
        )

    def _section(
        self, arrays: Arrays, split: Split, places: np.ndarray, names: tuple[str, ...]
    ) -> HeldOut:
        """Pictures by their places in the split, with the labels of these tasks."""

        def batch(some: np.ndarray) -> Batch:
            pictures = torch.from_numpy(arrays["pictures"][arrays[split].reshape(-1)[some]])
            shared = self.episodes == "fine_and_coarse"
            inputs = pictures if shared else dict.fromkeys(names, pictures)
            return Batch(inputs, {name: labels_of(arrays, split, name, some) for name in names}, {})

        return HeldOut(places, {"picture": places}, batch)

    def _by_shots(self, draws: Draws) -> Iterator[tuple[Draws, int]]:
        for own, (shots,) in alike(draws, drawn(self.shots, draws)):
            yield own, shots

    def _choose(
        self, arrays: Arrays, split: Split, number: int, draws: Draws
    ) -> dict[str, np.ndarray]:
        """Task -> the places [E, number] of its pictures in the split; the same ones of tasks that
        share their inputs.
        """
        if self.episodes == "fine_and_coarse":
            return dict.fromkeys(self.task_names, draws.choice(arrays[split].size, number))
        chosen = {}
        for name in self.task_names:
            own = places_of_superclass(arrays, split, name)
            chosen[name] = own[draws.choice(own.size, number)]
        return chosen

    def draw_episodes(self, arrays: Arrays, split: Split, draws: Draws) -> Iterator[Bucket]:
        if self.episodes == "classes":
            yield from self._few_shot(arrays, split, draws)
            return
        members = arrays[split].reshape(-1)
        for own, shots in self._by_shots(draws):
            chosen = self._choose(arrays, split, shots + self.queries, own)
            targets = {
                name: labels_of(arrays, split, name, places) for name, places in chosen.items()
            }
            inputs: Tensor | Mapping[str, Tensor]
            if self.episodes == "fine_and_coarse":
                (places, *_) = chosen.values()
                inputs = self._pictures(arrays, members[places], split, own)
            else:
                together = members[np.concatenate(list(chosen.values()), axis=1)]
                pictures = self._pictures(arrays, together, split, own)
                parts = pictures.split(shots + self.queries, dim=1)
                inputs = dict(zip(chosen, parts, strict=True))
            domains = same_domain(f"{split} pictures", len(own))
            yield Bucket(split_off_support(inputs, targets, shots), own.indices, domains)

    def _draw_classes(
        self, arrays: Arrays, split: Split, draws: Draws
    ) -> Iterator[tuple[Draws, np.ndarray, int]]:
        """Of the episodes that are alike: their generators, classes [E, ways], and shots."""
        ways, shots = drawn(self.ways, draws), drawn(self.shots, draws)
        for own, (num_ways, num_shots) in alike(draws, ways, shots):
            yield own, own.choice(len(arrays[split]), num_ways), num_shots

    def _few_shot(self, arrays: Arrays, split: Split, draws: Draws) -> Iterator[Bucket]:
        members = arrays[split]
        for own, classes, shots in self._draw_classes(arrays, split, draws):
            number = shots + self.queries
            columns = own.split(classes.shape[1]).choice(members.shape[1], number)
            chosen = members[classes[..., None], columns.reshape(*classes.shape, number)]
            # Class after class within the support, and then within the query.
            parts = chosen[..., :shots], chosen[..., shots:]
            rows = np.concatenate([part.reshape(len(own), -1) for part in parts], axis=1)
            label = torch.arange(classes.shape[1])
            target = torch.cat([label.repeat_interleave(part.shape[2]) for part in parts])
            episodes = split_off_support(
                self._pictures(arrays, rows, split, own),
                {TASK: target.repeat(len(own), 1)},
                shots * classes.shape[1],
            )
            names = partial(class_names, arrays[f"names/{split}"][classes])
            yield Bucket(episodes, own.indices, names)

    def _pictures(self, arrays: Arrays, rows: np.ndarray, split: Split, draws: Draws) -> Tensor:
        """The pictures with these numbers, [E, N] -> [E, N, 3, 32, 32]; or their features."""
        pictures = np.take(arrays["pictures"], rows, axis=0)
        if self.augment and split == "train":
            pictures = random_crops(pictures, draws)
        return torch.from_numpy(pictures)
