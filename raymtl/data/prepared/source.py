"""`prepared`: the user's files as `raymtl data prepare` has encoded them."""

from collections.abc import Iterable, Mapping
from typing import Literal, Self

import numpy as np
from pydantic import PositiveFloat, PositiveInt, model_validator

from raymtl.data.base import Arrays, Bucket, HeldOut, Members, Population, Source, Split
from raymtl.data.counts import Count, Ways, usual
from raymtl.data.draws import Draws
from raymtl.data.source_messages import unresolved
from raymtl.data.tables import augment as augmentation
from raymtl.data.tables.augment import Augment
from raymtl.data.tables.schema import TaskName
from raymtl.data.tables.source import Files
from raymtl.encoders.front import Slot
from raymtl.storage.notes import Note
from raymtl.storage.places import absolute
from raymtl.types import Task, UserError

CACHE_SHARE = 0.25
"""Of `in_memory_mb`, for row groups of data that do not fit into memory."""


class Prepared(Source):
    """Shards that `raymtl data prepare CONFIG --output PATH` has written.

    Splits, statistics, tasks and notes are those of the files that were prepared; data that fit
    into memory give the same episodes and weights. How episodes are drawn can be chosen anew. Data
    that do not fit are drawn from the shards, by rows, groups or classes (docs/data-prepared.md).
    """

    name: Literal["prepared"] = "prepared"
    path: str = ""
    """The folder or the URL that was the `--output`."""
    tasks: tuple[TaskName, ...] | None = None
    """Those in use; all that were prepared, unless given."""
    episodes: Literal["rows", "classes", "groups"] | None = None
    """This key and the next four: as they were prepared, unless given."""
    shots: Count | None = None
    queries: PositiveInt | None = None
    ways: Ways | None = None
    augment: Augment | None = None
    in_memory_mb: PositiveFloat | None = None
    """Larger data are drawn from the shards; as the files were, unless given."""
    digest: str | None = None
    """Of what was prepared; written by the program."""
    files: Files | None = None
    """What was prepared, with all findings; written by the program."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.is_resolved:
            self._check()
        return self

    @property
    def is_resolved(self) -> bool:
        return self.files is not None

    def resolve(self) -> Self:
        if self.is_resolved:
            return self
        if not self.path:
            raise _no_path()
        from raymtl.data.prepared.load import read_manifest

        path = absolute(self.path, "data.path")
        manifest = read_manifest(path)
        prepared = {"path": path, "files": manifest.files, "digest": manifest.digest}
        resolved = self.model_copy(update=prepared)
        resolved._check()
        return resolved

    @property
    def as_files(self) -> Files:
        """The files that were prepared, with the episodes that were chosen here. Raises UserError
        if no path was given, or nothing was read from it yet.
        """
        if self.files is None and not self.path:
            raise _no_path()
        if self.files is None:
            raise unresolved()
        keys = ("episodes", "shots", "queries", "ways", "augment")
        chosen = {key: getattr(self, key) for key in keys if getattr(self, key) is not None}
        if self.tasks is not None:
            chosen["tasks"] = {name: self.files.tasks[name] for name in self.tasks}
        return self.files.model_copy(update=chosen)

    def _check(self) -> None:
        """Raises UserError for tasks and episodes that the prepared data do not have."""
        assert self.files is not None
        known = self.files.tasks
        if self.tasks is not None and not set(self.tasks) <= set(known):
            raise UserError(
                f"data.tasks: expected some of {', '.join(known)}, got {list(self.tasks)}. Correct "
                "the names, or prepare the data with these tasks."
            )
        source = self.as_files
        if source.episodes == "groups" and source.group is None:
            raise UserError(
                "data.episodes: expected rows or classes, since the data were prepared without "
                "data.group, got groups. Prepare them again with the column that groups the rows."
            )
        if source.episodes == "classes":
            kinds = [source.found.tasks[name].task_kind for name in source.tasks]
            if len(known) != 1 or not kinds[0].has_class_targets:
                raise UserError(
                    "data.episodes: expected one prepared task with classes for classes, got "
                    f"{', '.join(f'{name} ({known[name].kind})' for name in known)}. Prepare the "
                    "data with that task alone, with kind: classification."
                )
        if source.augment is not None:
            augmentation.check(source.augment, source.is_image, source.make_tasks())

    @property
    def is_image(self) -> bool:
        return self.as_files.is_image

    @property
    def task_names(self) -> tuple[str, ...]:
        return self.as_files.task_names

    def select_tasks(self, names: tuple[str, ...]) -> Self:
        if names == self.task_names:
            return self
        return self.model_copy(update={"tasks": names})

    def as_supervised(self) -> Self:
        files = self.as_files
        queries = files.queries + usual(files.shots)
        return self.model_copy(update={"shots": 1, "queries": queries})

    @property
    def numbers_classes_anew(self) -> bool:
        return self.as_files.numbers_classes_anew

    def without_support(self, queries: int | None = None) -> Self:
        return self.model_copy(update={"shots": 0, "queries": queries or self.as_files.queries})

    def make_tasks(self) -> tuple[Task, ...]:
        return self.as_files.make_tasks()

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self.as_files.input_shape

    @property
    def slots(self) -> tuple[Slot, ...]:
        return self.as_files.slots

    def class_names(self, task: str) -> tuple[str, ...]:
        return self.as_files.class_names(task)

    def moved(self, places: Mapping[str, str]) -> Self:
        if set(places) != {"path"}:
            raise UserError(
                f"--data: expected the folder or the URL of the prepared data, got "
                f"{', '.join(places)}. Give --data PATH."
            )
        return self.model_copy(update={"path": absolute(places["path"], "--data")})

    def input_arrays(self) -> tuple[str, ...]:
        return self.as_files.input_arrays()

    def load(self) -> dict[str, np.ndarray]:
        from raymtl.data.prepared.load import load_prepared, read_manifest

        files = self.as_files
        manifest = read_manifest(self.path)
        if manifest.digest != self.digest:
            raise UserError(
                f"data.path: expected the prepared data that this run began with, got {self.path}, "
                "which holds those of another configuration. Give the right folder; "
                "data.files=null and data.digest=null begin anew with this one."
            )
        return load_prepared(files, manifest, self.path, self._cache_mb(files, manifest.num_bytes))

    def _cache_mb(self, files: Files, num_bytes: int) -> float | None:
        """Megabytes for a cache of row groups; None for data that fit into memory."""
        if self.in_memory_mb is None:
            fits = files.found.pool is None
            limit = files.in_memory_mb
        else:
            limit = self.in_memory_mb
            fits = num_bytes <= limit * 1e6
        if fits:
            return None
        return CACHE_SHARE * limit

    def sizes(self, arrays: Arrays) -> Mapping[str, int]:
        return self.as_files.sizes(arrays)

    def notes(self, arrays: Arrays) -> tuple[Note, ...]:
        return (*self.as_files.notes(arrays), *self._other_episodes())

    def _other_episodes(self) -> tuple[Note, ...]:
        """A note if the rows for training are others than those that the statistics are of."""
        assert self.files is not None
        before, now = self.files.episodes, self.as_files.episodes
        if self.files.group is not None or (before == "classes") == (now == "classes"):
            return ()
        text = (
            f"the data were prepared for episodes of {before}, whose rows for training the means "
            f"and standard deviations are of; episodes of {now} split the rows otherwise"
        )
        return (Note(place="prepared data", text=text, key="data.episodes"),)

    def draw_episodes(self, arrays: Arrays, split: Split, draws: Draws) -> Iterable[Bucket]:
        return self.as_files.draw_episodes(arrays, split, draws)

    @property
    def about_episodes(self) -> str:
        return self.as_files.about_episodes

    def populations(self, arrays: Arrays, split: Split) -> tuple[Population, ...]:
        return self.as_files.populations(arrays, split)

    def query_members(self, arrays: Arrays, split: Split, draws: Draws) -> Mapping[str, Members]:
        return self.as_files.query_members(arrays, split, draws)

    def every_example(self, arrays: Arrays, split: Split) -> tuple[HeldOut, ...]:
        return self.as_files.every_example(arrays, split)


def _no_path() -> UserError:
    return UserError(
        "data.path: expected the folder or the URL of prepared data, got none. Give the --output "
        "of `raymtl data prepare`."
    )


def files_of(source: Source) -> Files | None:
    """The user's files that a source is made of; None for one that is not."""
    if isinstance(source, Prepared):
        return source.as_files
    if isinstance(source, Files):
        return source
    return None
