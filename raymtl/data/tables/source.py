"""`files`: the user's own data, by YAML alone: tables and pictures, with any labels."""

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from torch import nn

from raymtl.data.base import (
    SPLITS,
    Arrays,
    Count,
    HeldOut,
    Members,
    Population,
    Source,
    Split,
    Ways,
    most,
    usual,
)
from raymtl.data.tables import sampling as drawing
from raymtl.data.tables.contents import check_encoding
from raymtl.data.tables.schema import (
    DateOrder,
    Decimal,
    Fitted,
    Format,
    Role,
    SplitRule,
    TaskColumn,
    TaskName,
    Thousands,
    Written,
)
from raymtl.data.tables.task_kinds import KINDS
from raymtl.notes import Note
from raymtl.tasks import chosen_by, classification
from raymtl.types import Episode, Task, UserError

Side = PositiveInt | tuple[PositiveInt, PositiveInt]
DRAWING = (
    "path",
    "tasks",
    "shots",
    "queries",
    "hold_steps",
    "held_out_rows",
    "max_corrupt",
    "fitted",
)
"""Fields that change nothing of what is found in the files, and where these are: files may move."""


class Files(Source):
    """Tables (Parquet, CSV, ARFF, MATLAB cells of tasks) and folders of pictures, with the labels
    of `tasks`.

    What is not said is inferred from the files when the configuration is read, shown by `raymtl
    data inspect`, and kept in `fitted` with all statistics, which are of the rows for training.
    docs/data.md tells the keys.

    `episodes: rows`: an episode is `shots` + `queries` rows at random. `groups`: an episode is a
    group of rows, such as a school, those of a value in the column `group`. `classes`: an episode
    is `ways` classes of its one task. Groups and classes of the splits are disjoint, and no group
    is ever in two splits.
    """

    name: Literal["files"] = "files"
    path: str | tuple[str, ...] | Mapping[Split, str] = ""
    """A file, a folder, a pattern or a URL, or several; or one for each of train, val and test."""
    format: Format | None = None
    """By the files' names, unless given."""
    inputs: Literal["auto"] | tuple[Written, ...] | Mapping[Written, Role] = "auto"
    """Columns, or patterns of their names; with their roles where these are not to be inferred."""
    exclude: tuple[Written, ...] = ()
    """Columns, or patterns of their names, that `auto` is to leave out."""
    tasks: Mapping[TaskName, TaskColumn] = {}
    key: Written | None = None
    """The column that joins the rows with the files of tasks that have their own."""
    group: Written | None = None
    """The column of which no value is in two splits: a patient, a school."""
    split: SplitRule = SplitRule()
    episodes: Literal["rows", "classes", "groups"] = "rows"
    shots: Count = 8
    queries: PositiveInt = 16
    ways: Ways = 5
    missing_inputs: Literal["refuse", "mean"] = "refuse"
    missing_values: tuple[Written, ...] = (
        "",
        "NA",
        "N/A",
        "n/a",
        "NaN",
        "nan",
        "null",
        "NULL",
        "None",
        "#N/A",
        "?",
    )
    """What stands for nothing in text files, unless it is a class that `classes` names."""
    decimal: Decimal | None = None
    """The decimal sign; found, unless given."""
    thousands: Thousands | None = None
    """What stands between groups of three digits; found, unless given."""
    dates: DateOrder | None = None
    """The order of year, month and day; found, unless given."""
    columns: tuple[Written, ...] = ()
    """The names of the columns of text files that have no header."""
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] | None = None
    encoding: str = "utf8"
    """Of text files, and of bytes that are texts; a byte order mark says more."""
    max_categories: Annotated[int, Field(ge=2)] = 64
    text_size: PositiveInt = 64
    """Into how many numbers the words of a text are hashed."""
    size: Side = 64
    """Of pictures: side, or [height, width]."""
    channels: Literal[1, 3] | None = None
    """Of pictures; 1 where all are grey, unless given."""
    value_range: tuple[float, float] | None = None
    """What is black and what is white in pictures of more than 8 bits; found, unless given."""
    resize: Literal["stretch", "crop"] = "stretch"
    max_corrupt: Annotated[float, Field(ge=0, le=1)] = 0.01
    """The share of pictures that may be unreadable; these are left out."""
    in_memory_mb: PositiveFloat = 2048
    """Rows that take more are streamed in blocks (docs/data.md)."""
    fit_rows: PositiveInt = 1_000_000
    """How many rows, at least, statistics are made of where the files are streamed."""
    hold_steps: PositiveInt = 100
    """For how many steps a block of a stream is drawn from."""
    held_out_rows: PositiveInt = 20_000
    """How many rows of validation and of testing are kept in memory where the files are streamed.
    """
    fitted: Fitted | None = None
    """What was found in the files; written by the program."""

    @model_validator(mode="after")
    def _found(self) -> Self:
        if not self.path and not any(task.path for task in self.tasks.values()):
            return self  # nothing to read yet; said when something is asked
        self._check()
        if self.fitted is not None and not self._stale(self.fitted):
            # of a run: its paths stand as they were found, and a worker need not know their
            # variables
            return self
        from raymtl.data.tables.paths import absolute

        paths: Mapping[Any, Any] = {"": self.path}
        if isinstance(self.path, Mapping):
            paths = self.path
        shown = {key: f"data.path{key and '.'}{key}" for key in paths}
        resolved = {
            key: tuple(absolute(p, shown[key]) for p in path)
            if isinstance(path, tuple)
            else absolute(path, shown[key])
            for key, path in paths.items()
            if path
        }
        if resolved:
            # The object is frozen for others; here it is still being made.
            self.__dict__["path"] = resolved if isinstance(self.path, Mapping) else resolved[""]
        if self.fitted is None or self._stale(self.fitted):
            from raymtl.data.tables.fit import fit

            self.__dict__["fitted"] = fit(self)
        return self

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

    def digest(self) -> str:
        """Of all that the findings depend on, other than the files and the place where they are."""
        content = self.model_dump(mode="json", exclude=set(DRAWING), exclude_defaults=True)
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def _stale(self, fitted: Fitted) -> bool:
        known = fitted.tasks
        return fitted.settings != self.digest() or any(
            name not in known or _without_place(known[name].asked) != _without_place(task)
            for name, task in self.tasks.items()
        )

    def moved(self, places: Mapping[str, str]) -> Self:
        """The same data in other places: `path`, `path.SPLIT` or `tasks.NAME.path` -> path. Nothing
        is found anew.

        Raises UserError for another key, and for a task that has no files of its own.
        """
        from raymtl.data.tables.paths import absolute

        path: Any = self.path
        tasks = dict(self.tasks)
        for key, place in places.items():
            where = absolute(place, f"--data {key}" if key != "path" else "--data")
            head, _, rest = key.partition(".")
            name = rest.removesuffix(".path")
            if key == "path":
                path = where
            elif head == "path" and rest in SPLITS:
                path = {**(path if isinstance(path, Mapping) else {}), rest: where}
            elif head == "tasks" and name in tasks and tasks[name].path:
                tasks[name] = tasks[name].model_copy(update={"path": where})
            else:
                raise UserError(
                    f"--data {key}: expected one of {', '.join(self.places())}, got another. "
                    "Correct it."
                )
        return self.model_copy(update={"path": path, "tasks": tasks})

    def places(self) -> tuple[str, ...]:
        """The keys that say where files are."""
        own = [f"tasks.{name}.path" for name, task in self.tasks.items() if task.path]
        return ("path", *(f"path.{split}" for split in SPLITS), *own)

    @property
    def found(self) -> Fitted:
        """What was found in the files. Raises UserError where none were given."""
        if self.fitted is None:
            raise UserError(
                "data.path: expected a file, a folder or a URL, got none. Give the path of your "
                "data."
            )
        return self.fitted

    @property
    def is_image(self) -> bool:
        return self.found.columns[0].role == "picture"

    @property
    def task_names(self) -> tuple[str, ...]:
        return tuple(self.tasks)

    def select_tasks(self, names: tuple[str, ...]) -> Self:
        return self.model_copy(update={"tasks": {name: self.tasks[name] for name in names}})

    def as_supervised(self) -> Self:
        # A support set of one is drawn all the same: an episode has both parts.
        return self.model_copy(update={"shots": 1, "queries": self.queries + usual(self.shots)})

    def make_tasks(self) -> tuple[Task, ...]:
        found = self.found
        if self.episodes == "classes":
            return tuple(
                chosen_by(
                    classification(name, most(self.ways), few_shot=True),
                    task.metric,
                    f"data.tasks.{name}.metric",
                )
                for name, task in self.tasks.items()
            )
        size = shape_of(self.size)
        tasks = [
            KINDS[found.tasks[name].kind].make(name, found.tasks[name], size) for name in self.tasks
        ]
        return tuple(
            chosen_by(task, self.tasks[task.name].metric, f"data.tasks.{task.name}.metric")
            for task in tasks
        )

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self.found.input_shape

    def class_names(self, task: str) -> tuple[str, ...]:
        # Episodes of classes number their own.
        if self.episodes != "classes":
            return self.found.tasks[task].classes
        return ()

    def load(self) -> dict[str, np.ndarray]:
        from raymtl.data.tables.encode import load

        return load(self)

    def sizes(self, arrays: Arrays) -> Mapping[str, int]:
        counts = dict(zip(arrays["tasks"].tolist(), arrays["sizes"].tolist(), strict=True))
        return {name: counts[name] for name in self.task_names}

    def notes(self, arrays: Arrays) -> tuple[Note, ...]:
        return (*self.found.notes, *self._moved_notes(), *super().notes(arrays))

    def _moved_notes(self) -> tuple[Note, ...]:
        found = self.found.path
        if found in ("", self.path):
            return ()
        text = f"statistics and classes are those found in {_shown(found)}; null finds them anew"
        return (Note(place=f"files in {_shown(self.path)}", text=text, key="data.fitted"),)

    def window(self, arrays: Arrays, split: Split, seed: int, step: int) -> Arrays:
        if split != "train" or self.found.pool is None:
            return arrays
        from raymtl.data.tables.stream_window import window

        return window(self, arrays, seed, step)

    def episode(
        self, arrays: Arrays, split: Split, rng: np.random.Generator
    ) -> tuple[Episode, str]:
        return drawing.draw(self, arrays, split, rng)

    @property
    def about_episodes(self) -> str:
        shots = _words(self.shots)
        if self.episodes == "classes":
            return f"{_words(self.ways)} classes, {shots} rows of each to adapt to, {self.queries} to predict"
        if self.episodes == "groups":
            of = f"one {self.group}"
        else:
            of = "the split, drawn at random"
        return f"{shots} rows to adapt to and {self.queries} to predict of {of}"

    def populations(self, arrays: Arrays, split: Split) -> tuple[Population, ...]:
        return drawing.populations(self, arrays, split)

    def query_members(
        self, arrays: Arrays, split: Split, rng: np.random.Generator
    ) -> Mapping[str, Members]:
        return drawing.query_members(self, arrays, split, rng)

    def every_example(self, arrays: Arrays, split: Split) -> tuple[HeldOut, ...]:
        return drawing.every_example(self, arrays, split)


def _shown(path: str | tuple[str, ...] | Mapping[Any, str]) -> str:
    if isinstance(path, str):
        return path
    return ", ".join(path.values() if isinstance(path, Mapping) else path)


def _without_place(task: TaskColumn) -> TaskColumn:
    """What is asked of a task's labels, wherever its own files are, and whatever score it is chosen
    by.
    """
    return task.model_copy(update={"path": "here" if task.path else None, "metric": None})


def _words(count: int | tuple[int, int]) -> str:
    if isinstance(count, int):
        return str(count)
    return f"{count[0]} to {count[1]}"


def shape_of(size: Any) -> tuple[int, int]:
    """Height and width."""
    if isinstance(size, tuple):
        return size
    return (size, size)
