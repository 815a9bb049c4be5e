"""`files`: the user's own data, by YAML alone: tables and pictures, with any labels."""

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Self

import numpy as np
from pydantic import model_validator
from torch import nn

from raymtl.data.base import SPLITS, Arrays, Bucket, HeldOut, Members, Population, Split
from raymtl.data.counts import usual
from raymtl.data.draws import Draws
from raymtl.data.tables import augment
from raymtl.data.tables import sampling as drawing
from raymtl.data.tables.contents import check_encoding
from raymtl.data.tables.settings import FilesConfig, no_path
from raymtl.storage.notes import Note
from raymtl.storage.places import absolute
from raymtl.types import UserError


class Files(FilesConfig):
    """Tables (Parquet, CSV, ARFF, MATLAB cells of tasks) and folders of pictures, with the labels
    of `tasks`.

    What is not said is inferred from the files by `resolve`, when a configuration is loaded. It is
    shown by `raymtl data inspect`, and kept in `fitted` with all statistics, which are of the rows
    for training. docs/data.md tells the keys.

    `episodes: rows`: an episode is `shots` + `queries` rows at random. `groups`: an episode is a
    group of rows, such as a school, those of a value in the column `group`. `classes`: an episode
    is `ways` classes of its one task. Groups and classes of the splits are disjoint, and no group
    is ever in two splits.
    """

    input_array: ClassVar[str] = "inputs"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.has_path:
            return self  # said when something is asked
        self._check()
        if self.fitted is not None and self.is_stale(self.fitted):
            # The object is frozen for others; here it is still being made.
            self.__dict__["fitted"] = None
        if self.fitted is not None:
            self._check_augment()
        return self

    @property
    def is_resolved(self) -> bool:
        return self.fitted is not None

    def resolve(self) -> Self:
        # Of a run, paths stand as they were found, and a worker need not know their variables.
        if self.is_resolved:
            return self
        if not self.has_path:
            raise no_path()
        from raymtl.data.tables.fit import fit
        from raymtl.data.tables.text_columns import absolute_models

        places = {"path": _absolute(self.path), "inputs": absolute_models(self.inputs)}
        placed = self.model_copy(update=places)
        resolved = placed.model_copy(update={"fitted": fit(placed)})
        resolved._check_augment()
        return resolved

    def _check_augment(self) -> None:
        if self.augment is not None:
            augment.check(self.augment, self.is_image, self.make_tasks())

    def _check(self) -> None:
        if not self.tasks:
            raise UserError(
                "data.tasks: expected a task at least, such as `price: {column: price}`, got none. "
                "Add it."
            )
        check_encoding(self.encoding)
        reserved = nn.ModuleDict()
        for name, task in self.tasks.items():
            if hasattr(reserved, name):
                raise UserError(
                    f"data.tasks: {name}: expected another name, for this one is reserved. Rename "
                    "the task."
                )
            if task.column and task.columns:
                raise UserError(
                    f"data.tasks.{name}: expected column or columns, got both. Leave one away."
                )
        if self.episodes == "groups" and self.group is None:
            raise UserError(
                "data.group: expected the column that groups the rows for data.episodes: groups, "
                "got none."
            )
        if self.episodes == "classes" and len(self.tasks) != 1:
            raise UserError(
                "data.tasks: expected one task of classes for data.episodes: classes, got "
                f"{list(self.tasks)}."
            )
        if self.value_range is not None and self.value_range[0] >= self.value_range[1]:
            raise UserError(
                "data.value_range: expected [black, white], the smaller first, got "
                f"{list(self.value_range)}."
            )
        if self.group and self.split.key:
            raise UserError(
                "data.split.key: expected none beside data.group, by which rows are split. Leave "
                "it away."
            )

    def moved(self, places: Mapping[str, str]) -> Self:
        """The same data in other places: `path`, `path.SPLIT` or `tasks.NAME.path` -> path. Nothing
        is found anew.

        Raises UserError for another key, and for a task that has no files of its own.
        """
        path: Any = self.path
        tasks = dict(self.tasks)
        for key, place in places.items():
            option = "--data"
            if key != "path":
                option = f"--data {key}"
            moved_to = absolute(place, option)
            head, _, rest = key.partition(".")
            name = rest.removesuffix(".path")
            if key == "path":
                path = moved_to
            elif head == "path" and rest in SPLITS:
                if not isinstance(path, Mapping):
                    path = {}
                path = {**path, rest: moved_to}
            elif head == "tasks" and name in tasks and tasks[name].path:
                tasks[name] = tasks[name].model_copy(update={"path": moved_to})
            else:
                raise UserError(
                    f"--data {key}: expected one of {', '.join(self.places())}, got another. "
                    "Correct it."
                )
        return self.model_copy(update={"path": path, "tasks": tasks})

    def for_episodes(self, episodes: str) -> Self:
        """The same data and findings for other episodes: rows, groups or classes."""
        chosen = self.model_copy(update={"episodes": episodes})
        fitted = self.found.model_copy(update={"settings": chosen.digest()})
        return chosen.model_copy(update={"fitted": fitted})

    def places(self) -> tuple[str, ...]:
        """The keys that say where files are."""
        label_files = [f"tasks.{name}.path" for name, task in self.tasks.items() if task.path]
        return ("path", *(f"path.{split}" for split in SPLITS), *label_files)

    def select_tasks(self, names: tuple[str, ...]) -> Self:
        return self.model_copy(update={"tasks": {name: self.tasks[name] for name in names}})

    def as_supervised(self) -> Self:
        # A support set of one is drawn all the same: an episode has both parts.
        return self.model_copy(update={"shots": 1, "queries": self.queries + usual(self.shots)})

    def without_support(self, queries: int | None = None) -> Self:
        return self.model_copy(update={"shots": 0, "queries": queries or self.queries})

    def class_names(self, task: str) -> tuple[str, ...]:
        # Episodes of classes number their own.
        if self.episodes != "classes":
            return self.found.tasks[task].classes
        return ()

    def load(self) -> dict[str, np.ndarray]:
        from raymtl.data.tables.load import load

        return load(self)

    def sizes(self, arrays: Arrays) -> Mapping[str, int]:
        counts = dict(zip(arrays["tasks"].tolist(), arrays["sizes"].tolist(), strict=True))
        return {name: counts[name] for name in self.task_names}

    def expected_labels(self, arrays: Arrays) -> Mapping[str, float]:
        if self.is_streamed or self.episodes == "classes":
            return {}
        rows = max(1, len(arrays["rows/train"]))
        if len(self.tasks) == 1:
            rows = next(iter(self.sizes(arrays).values()))  # only those with a label are drawn
        return {
            name: self.queries * labels / max(1, rows)
            for name, labels in self.sizes(arrays).items()
        }

    def notes(self, arrays: Arrays) -> tuple[Note, ...]:
        return (*self.found.notes, *self._moved_notes(), *super().notes(arrays))

    def _moved_notes(self) -> tuple[Note, ...]:
        original_path = self.found.path
        if original_path in ("", self.path):
            return ()
        text = (
            f"statistics and classes are those found in {_shown(original_path)}; "
            "null finds them anew"
        )
        return (Note(place=f"files in {_shown(self.path)}", text=text, key="data.fitted"),)

    @property
    def is_streamed(self) -> bool:
        return self.found.pool is not None

    def window(self, arrays: Arrays, split: Split, seed: int, step: int, lane: int = 0) -> Arrays:
        if split != "train" or not self.is_streamed:
            return arrays
        from raymtl.data.tables.shuffle_buffer import fill_buffer

        return fill_buffer(self, seed, step, lane)

    def draw_episodes(self, arrays: Arrays, split: Split, draws: Draws) -> Iterable[Bucket]:
        return drawing.draw(self, arrays, split, draws)

    @property
    def about_episodes(self) -> str:
        shots = _words(self.shots)
        if self.episodes == "classes":
            return (
                f"{_words(self.ways)} classes, {shots} rows of each to adapt to, {self.queries} "
                "to predict"
            )
        if self.episodes == "groups":
            of = f"one {self.group}"
        else:
            of = "the split, drawn at random"
        return f"{shots} rows to adapt to and {self.queries} to predict of {of}"

    def populations(self, arrays: Arrays, split: Split) -> tuple[Population, ...]:
        return drawing.populations(self, arrays, split)

    def query_members(self, arrays: Arrays, split: Split, draws: Draws) -> Mapping[str, Members]:
        return drawing.query_members(self, arrays, split, draws)

    def every_example(self, arrays: Arrays, split: Split) -> tuple[HeldOut, ...]:
        return drawing.every_example(self, arrays, split)


def _shown(path: str | tuple[str, ...] | Mapping[Any, str]) -> str:
    if isinstance(path, str):
        return path
    if isinstance(path, Mapping):
        return ", ".join(path.values())
    return ", ".join(path)


def _absolute(path: str | tuple[str, ...] | Mapping[Any, str]) -> Any:
    """The same paths from the root of the disk; those that are not given as they are."""
    if isinstance(path, tuple):
        return tuple(absolute(one, "data.path") for one in path)
    if isinstance(path, Mapping):
        given = {split: one for split, one in path.items() if one}
        return {split: absolute(one, f"data.path.{split}") for split, one in given.items()} or path
    if not path:
        return path
    return absolute(path, "data.path")


def _words(count: int | tuple[int, int]) -> str:
    if isinstance(count, int):
        return str(count)
    return f"{count[0]} to {count[1]}"
