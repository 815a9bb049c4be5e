"""`several`: episodes of several sources in one meta-batch, one source an episode or all of them
together.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, Literal, Self

import numpy as np
import torch
from pydantic import Field, TypeAdapter, ValidationError, field_validator, model_validator
from torch import Tensor

from raymtl.data.base import Arrays, HeldOut, Members, Population, Source, Split
from raymtl.data.sources.digits import Digits
from raymtl.data.sources.registry import PartSpec
from raymtl.data.tables import Files
from raymtl.notes import Note
from raymtl.types import Batch, Episode, Task, UserError, matching

PartName = Annotated[str, matching(r"[A-Za-z][A-Za-z0-9]*", "letters and digits, a letter first")]


class Several(Source):
    """Whatever tasks its `parts` have, in one meta-batch: each part is a source, and its task T is
    named PART_T here.

    `episodes: one`: an episode is one part's, drawn with odds proportional to `odds` (equal by
    default); the tasks of the other parts are without labels in it. `episodes: together`: an
    episode holds the tasks of all parts, each with its part's inputs, and is adapted to all of them
    at once. Inputs of all parts have the same shape, for one encoder reads them all: pictures of
    one `size` and number of channels, or tables that become as many numbers.
    """

    name: Literal["several"] = "several"
    parts: Annotated[Mapping[PartName, PartSpec], Field(min_length=1)] = {
        "scene": Digits(),
        "pair": Digits(episodes="classes"),
    }
    episodes: Literal["one", "together"] = "one"
    odds: Mapping[str, Annotated[float, Field(gt=0)]] = {}

    @field_validator("parts", mode="before")
    @classmethod
    def _told_apart(cls, parts: Any) -> Any:
        """Reads each part, so that what is wrong with one is said of it."""
        if not isinstance(parts, Mapping):
            return parts
        return {name: _part(str(name), part) for name, part in parts.items()}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        unknown = sorted(set(self.odds) - set(self.parts))
        if unknown:
            raise UserError(
                f"data.odds: expected names of data.parts: {list(self.parts)}, got '{unknown[0]}'. "
                "Correct the name."
            )
        (first, one), *others = self.parts.items()
        for name, other in others:
            if (other.input_shape, other.is_image) != (one.input_shape, one.is_image):
                raise UserError(
                    f"data.parts.{name}: expected inputs of shape {one.input_shape} as "
                    f"data.parts.{first} has, got {other.input_shape}. One encoder reads them all: "
                    "take sources whose inputs are alike."
                )
        streamed = [
            name for name, part in self.parts.items() if isinstance(part, Files) and part.found.pool
        ]
        if len(streamed) > 1:
            raise UserError(
                f"data.parts.{streamed[1]}.in_memory_mb: expected one part that is larger than "
                f"memory, got {streamed}. Raise it for one of them."
            )
        return self

    @property
    def is_image(self) -> bool:
        return next(iter(self.parts.values())).is_image

    @property
    def task_names(self) -> tuple[str, ...]:
        return tuple(
            f"{part}_{task}" for part, source in self.parts.items() for task in source.task_names
        )

    def select_tasks(self, names: tuple[str, ...]) -> Self:
        parts = {}
        for part, source in self.parts.items():
            own = tuple(task for task in source.task_names if f"{part}_{task}" in names)
            if own:
                parts[part] = source.select_tasks(own)
        odds = {part: value for part, value in self.odds.items() if part in parts}
        return self.model_copy(update={"parts": parts, "odds": odds})

    def as_supervised(self) -> Self:
        return self.model_copy(
            update={"parts": {part: source.as_supervised() for part, source in self.parts.items()}}
        )

    def make_tasks(self) -> tuple[Task, ...]:
        return tuple(
            task._replace(name=f"{part}_{task.name}")
            for part, source in self.parts.items()
            for task in source.make_tasks()
        )

    @property
    def input_shape(self) -> tuple[int, ...]:
        return next(iter(self.parts.values())).input_shape

    def part_of(self, task: str) -> tuple[str, str]:
        """The part that has a task of this name, and what it is called there. Raises UserError for
        another name.
        """
        for part, source in self.parts.items():
            own = task.removeprefix(f"{part}_")
            if own != task and own in source.task_names:
                return part, own
        raise UserError(
            f"task: expected one of {', '.join(self.task_names)}, got '{task}'. Correct the name."
        )

    def class_names(self, task: str) -> tuple[str, ...]:
        part, own = self.part_of(task)
        return self.parts[part].class_names(own)

    def load(self) -> dict[str, np.ndarray]:
        arrays: dict[str, np.ndarray] = {}
        for part, source in self.parts.items():
            with _said_of(part):
                arrays |= {f"{part}/{key}": array for key, array in source.load().items()}
        return arrays

    def moved(self, places: Mapping[str, str]) -> Self:
        parts = dict(self.parts)
        for key, place in places.items():
            _, _, rest = key.partition("parts.")
            part, _, inside = rest.partition(".")
            if part not in parts:
                raise UserError(
                    f"--data {key}: expected --data parts.NAME.path=PATH with the name of a part, "
                    f"one of {', '.join(parts)}, got another. Correct the key."
                )
            parts[part] = parts[part].moved({inside: place})
        return self.model_copy(update={"parts": parts})

    def notes(self, arrays: Arrays) -> tuple[Note, ...]:
        return tuple(
            note.of_part(part, f"data.parts.{part}")
            for part, source in self.parts.items()
            for note in source.notes(_of(part, arrays))
        )

    def window(self, arrays: Arrays, split: Split, seed: int, step: int) -> Arrays:
        found: dict[str, np.ndarray] = {}
        for part, source in self.parts.items():
            own = source.window(_of(part, arrays), split, seed, step)
            found |= {f"{part}/{key}": array for key, array in own.items()}
        return found

    def sizes(self, arrays: Arrays) -> Mapping[str, int]:
        return {
            f"{part}_{task}": size
            for part, source in self.parts.items()
            for task, size in source.sizes(_of(part, arrays)).items()
        }

    @property
    def about_episodes(self) -> str:
        each = "; ".join(f"{part}: {source.about_episodes}" for part, source in self.parts.items())
        if self.episodes == "together":
            return f"one of each part together ({each})"
        return f"one of a part ({each})"

    def populations(self, arrays: Arrays, split: Split) -> tuple[Population, ...]:
        return tuple(
            own._replace(name=f"{part} {own.name}")
            for part, source in self.parts.items()
            for own in source.populations(_of(part, arrays), split)
        )

    def query_members(
        self, arrays: Arrays, split: Split, rng: np.random.Generator
    ) -> Mapping[str, Members]:
        found: dict[str, Members] = {}
        for part in self._parts_of(rng):
            own = _of(part, arrays)
            for task, members in (
                self.parts[part].query_members(own, split, copy.deepcopy(rng)).items()
            ):
                found[f"{part}_{task}"] = {
                    f"{part} {name}": values for name, values in members.items()
                }
            self.parts[part].episode(
                own, split, rng
            )  # which takes its chances before those of the next part
        return found

    def every_example(self, arrays: Arrays, split: Split) -> tuple[HeldOut, ...]:
        sections: list[HeldOut] = []
        for part, source in self.parts.items():
            own = source.every_example(_of(part, arrays), split)
            if not own:
                return ()
            sections += [self._section(part, section) for section in own]
        return tuple(sections)

    def _section(self, part: str, section: HeldOut) -> HeldOut:
        def batch(rows: np.ndarray) -> Batch:
            own = section.batch(rows)
            if self.episodes == "together":
                return _joined({part: own})
            return self._completed(part, own)

        members = {f"{part} {name}": values for name, values in section.members.items()}
        return HeldOut(section.rows, members, batch)

    def _parts_of(self, rng: np.random.Generator) -> list[str]:
        """The parts of an episode."""
        if self.episodes == "together":
            return list(self.parts)
        odds = np.array([self.odds.get(part, 1.0) for part in self.parts])
        return [list(self.parts)[rng.choice(len(odds), p=odds / odds.sum())]]

    def episode(
        self, arrays: Arrays, split: Split, rng: np.random.Generator
    ) -> tuple[Episode, str]:
        if self.episodes == "together":
            own = {
                part: source.episode(_of(part, arrays), split, rng)
                for part, source in self.parts.items()
            }
            support = _joined({part: episode.support for part, (episode, _) in own.items()})
            query = _joined({part: episode.query for part, (episode, _) in own.items()})
            return Episode(support, query), " + ".join(
                f"{part} {domain}" for part, (_, domain) in own.items()
            )
        (part,) = self._parts_of(rng)
        episode, domain = self.parts[part].episode(_of(part, arrays), split, rng)
        return Episode(*(self._completed(part, batch) for batch in episode)), f"{part} {domain}"

    def _completed(self, part: str, batch: Batch) -> Batch:
        """With the targets of all tasks, those of other parts masked."""
        shapes = {task.name: task.target_shape for task in self.make_tasks()}
        number = len(next(iter(batch.targets.values())))
        targets, masks = {}, {}
        for name in self.task_names:
            owner, _, task = name.partition("_")
            if owner == part:
                targets[name] = batch.targets[task]
                masks[name] = batch.masks.get(task, torch.ones(number, dtype=torch.bool))
            else:
                targets[name] = torch.zeros(number, *shapes[name], dtype=torch.int64)
                masks[name] = torch.zeros(number, dtype=torch.bool)
        return Batch(batch.inputs, targets, masks)


_PART: TypeAdapter[Source] = TypeAdapter(PartSpec)


def _part(name: str, part: Any) -> Any:
    with _said_of(name):
        try:
            return _PART.validate_python(part)
        except ValidationError:
            return part  # which is refused again with its place in the whole


@contextmanager
def _said_of(part: str) -> Iterator[None]:
    """Names the part in what is said of its keys inside."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace("data.", f"data.parts.{part}.")) from None


def _of(part: str, arrays: Arrays) -> Arrays:
    return {
        key.partition("/")[2]: array for key, array in arrays.items() if key.startswith(f"{part}/")
    }


def _joined(batches: Mapping[str, Batch]) -> Batch:
    """One batch in which every task has the inputs of its part."""
    inputs: dict[str, Tensor] = {}
    targets: dict[str, Tensor] = {}
    masks: dict[str, Tensor] = {}
    for part, batch in batches.items():
        own = (
            dict.fromkeys(batch.targets, batch.inputs)
            if isinstance(batch.inputs, Tensor)
            else batch.inputs
        )
        for whole, values in ((inputs, own), (targets, batch.targets), (masks, batch.masks)):
            whole.update({f"{part}_{task}": value for task, value in values.items()})
    return Batch(inputs, targets, masks)
