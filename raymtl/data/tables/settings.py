"""The keys of `files` in a configuration, and what was found in the files by them."""

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from raymtl.data.base import Source, Split
from raymtl.data.counts import Count, Ways, most
from raymtl.data.source_messages import unresolved
from raymtl.data.tables.augment import Augment
from raymtl.data.tables.fitted_column import Role
from raymtl.data.tables.schema import (
    DateOrder,
    Decimal,
    Fitted,
    Format,
    SplitRule,
    TaskColumn,
    TaskName,
    Thousands,
)
from raymtl.data.tables.token_slots import token_slot
from raymtl.encoders.front import MOST_PLACES, Slot, SparseSlot
from raymtl.encoders.texts.settings import TextInput
from raymtl.schema.readers import Written
from raymtl.tasks import chosen_by, classification, with_threshold
from raymtl.types import Task, UserError

ImageSize = PositiveInt | tuple[PositiveInt, PositiveInt]
DRAWING = (
    "builders",
    "lanes",
    "path",
    "tasks",
    "augment",
    "shots",
    "queries",
    "hold_steps",
    "held_out_rows",
    "max_corrupt",
    "fitted",
)
"""Fields that change nothing of what is found in the files, and where these are: files may move."""


class FilesConfig(Source):
    """The keys of `files`; reading them opens no file."""

    name: Literal["files"] = "files"
    path: str | tuple[str, ...] | Mapping[Split, str] = ""
    """A file, a folder, a pattern or a URL, or several; or one for each of train, val and test."""
    format: Format | None = None
    """By the files' names, unless given."""
    inputs: Literal["auto"] | tuple[Written, ...] | Mapping[Written, Role | TextInput] = "auto"
    """Columns, or patterns of their names; with their roles where these are not to be inferred, and
    with the encoders of texts.
    """
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
    text_size: Annotated[int, Field(ge=16, lt=MOST_PLACES)] = 2**14
    """Into how many places the words and characters of a text are hashed."""
    text_terms: PositiveInt = 1024
    """The most terms of a text; of more, those of the largest weights stay."""
    size: ImageSize = 64
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
    augment: Augment | None = None
    """How pictures for training are changed at random (docs/data-pictures.md)."""
    hold_steps: PositiveInt = 100
    """For how many steps a block of a stream is drawn from."""
    held_out_rows: PositiveInt = 20_000
    """How many rows of validation and of testing are kept in memory where the files are streamed.
    """
    fitted: Fitted | None = None
    """What was found in the files; written by the program."""

    def digest(self) -> str:
        """Of all that the findings depend on, other than the files and the place where they are."""
        content = self.model_dump(mode="json", exclude=set(DRAWING), exclude_defaults=True)
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def given_inputs(self) -> Mapping[str, Role | TextInput]:
        """What `inputs` says of columns and patterns, beside their names."""
        if isinstance(self.inputs, str | tuple):
            return {}
        return self.inputs

    @property
    def has_path(self) -> bool:
        """Whether it is said where any files are."""
        return bool(self.path) or any(task.path for task in self.tasks.values())

    def is_stale(self, fitted: Fitted) -> bool:
        known = fitted.tasks
        return fitted.settings != self.digest() or any(
            name not in known or _without_place(known[name].asked) != _without_place(task)
            for name, task in self.tasks.items()
        )

    @property
    def found(self) -> Fitted:
        """What was found in the files. Raises UserError where none were given, or not read yet."""
        if self.fitted is not None:
            return self.fitted
        if not self.has_path:
            raise no_path()
        raise unresolved()

    @property
    def is_image(self) -> bool:
        return self.found.columns[0].role == "picture"

    @property
    def task_names(self) -> tuple[str, ...]:
        return tuple(self.tasks)

    def make_tasks(self) -> tuple[Task, ...]:
        return tuple(self._make_task(name, asked) for name, asked in self.tasks.items())

    def _make_task(self, name: str, asked: TaskColumn) -> Task:
        fitted = self.found.tasks[name]
        if self.episodes == "classes":
            options = fitted.class_loss
            task = classification(name, most(self.ways), few_shot=True, options=options)
        else:
            kind = fitted.task_kind
            task = kind.make(name, fitted.statistics, height_and_width(self.size))
            task = task._replace(kind=kind)  # one of the user's own may build on another
        chosen = chosen_by(task, asked.metric, f"data.tasks.{name}.metric")
        return with_threshold(chosen, asked.threshold, asked.metric)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self.found.input_shape

    @property
    def slots(self) -> tuple[Slot, ...]:
        slots: list[Slot] = []
        start = 0
        for column in self.found.columns:
            slot = token_slot(column, start)
            if slot is not None:
                slots.append(slot)
            if column.is_sparse:
                slots.append(SparseSlot(start, column.size // 2, column.num_places))
            start += column.size
        return tuple(slots)


def no_path() -> UserError:
    """The error about files of which it is not said where they are."""
    return UserError(
        "data.path: expected a file, a folder or a URL, got none. Give the path of your data."
    )


def _without_place(task: TaskColumn) -> TaskColumn:
    """What is asked of a task's labels, wherever its own files are, whatever score it is chosen by
    and whatever threshold decides.
    """
    path = "here" if task.path else None
    return task.model_copy(update={"path": path, "metric": None, "threshold": None})


def height_and_width(size: Any) -> tuple[int, int]:
    """Height and width."""
    if isinstance(size, tuple):
        return size
    return (size, size)
