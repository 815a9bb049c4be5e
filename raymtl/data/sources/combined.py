"""`several`: episodes of several sources in one meta-batch, one source an episode or all of them
together.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field, PositiveFloat, field_validator, model_validator

from raymtl.data.base import Arrays, Bucket, HeldOut, Members, Population, Source, Split
from raymtl.data.draws import Draws
from raymtl.data.sources.digits import Digits
from raymtl.data.sources.joined import (
    arrays_of_part,
    check_alike,
    check_temperature,
    completed_batch,
    errors_of_part,
    input_arrays_of,
    joined_batch,
    joined_buckets,
    named_domains,
    odds_of,
)
from raymtl.data.sources.registry import PartSpec, parsed_part
from raymtl.encoders.front import Slot
from raymtl.storage.notes import Note
from raymtl.types import Batch, Episode, Task, UserError, matching

PartName = Annotated[str, matching(r"[A-Za-z][A-Za-z0-9]*", "letters and digits, a letter first")]


class Several(Source):
    """Whatever tasks its `parts` have, in one meta-batch: each part is a source, and its task T is
    named PART_T here.

    `episodes: one`: an episode is one part's, drawn with odds proportional to `odds` (equal by
    default), or by `temperature` T to n^(1/T) of its n rows for training: 1 is proportional to
    them, "inf" equal. The tasks of the other parts are without labels in it. `episodes: together`:
    an episode holds the tasks of all parts, each with its part's inputs, and is adapted to all of
    them at once. Inputs of all parts have one shape, for one encoder reads them all: pictures of
    one `size` and number of channels, or tables that become as many numbers.
    """

    name: Literal["several"] = "several"
    parts: Annotated[Mapping[PartName, PartSpec], Field(min_length=1)] = {
        "scene": Digits(),
        "pair": Digits(episodes="classes"),
    }
    episodes: Literal["one", "together"] = "one"
    odds: Mapping[str, Annotated[float, Field(gt=0)]] = {}
    temperature: PositiveFloat | Literal["inf"] | None = None

    @field_validator("parts", mode="before", json_schema_input_type=Mapping[PartName, PartSpec])
    @classmethod
    def _told_apart(cls, parts: Any) -> Any:
        """Reads each part, so that what is wrong with one is said of it."""
        if not isinstance(parts, Mapping):
            return parts
        return {name: parsed_part(str(name), part) for name, part in parts.items()}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        unknown = sorted(set(self.odds) - set(self.parts))
        if unknown:
            raise UserError(
                f"data.odds: expected names of data.parts: {list(self.parts)}, got '{unknown[0]}'. "
                "Correct the name."
            )
        check_temperature(self.temperature, self.odds, self.episodes, self.parts)
        self._check_parts()
        if self.is_resolved:
            check_alike(self.parts)
        return self

    @property
    def is_resolved(self) -> bool:
        return all(part.is_resolved for part in self.parts.values())

    def resolve(self) -> Self:
        if self.is_resolved:
            return self
        parts: dict[str, Source] = {}
        for name, part in self.parts.items():
            with errors_of_part(name):
                parts[name] = part.resolve()
        resolved = self.model_copy(update={"parts": parts})
        check_temperature(self.temperature, self.odds, self.episodes, resolved.parts)
        check_alike(resolved.parts)
        return resolved

    def _check_parts(self) -> None:
        """Refuses keys of a part that are the same for all parts."""
        for name, part in self.parts.items():
            for key, default in (("builders", "auto"), ("lanes", 1)):
                value = getattr(part, key)
                if value != default:
                    raise UserError(
                        f"data.parts.{name}.{key}: expected none, since it is the same for all "
                        f"parts, got {value}. Set data.{key}."
                    )

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

    @property
    def numbers_classes_anew(self) -> bool:
        return any(part.numbers_classes_anew for part in self.parts.values())

    def without_support(self, queries: int | None = None) -> Self:
        parts = {part: source.without_support(queries) for part, source in self.parts.items()}
        return self.model_copy(update={"parts": parts})

    def make_tasks(self) -> tuple[Task, ...]:
        return tuple(
            task._replace(name=f"{part}_{task.name}")
            for part, source in self.parts.items()
            for task in source.make_tasks()
        )

    @property
    def input_shape(self) -> tuple[int, ...]:
        return next(iter(self.parts.values())).input_shape

    @property
    def slots(self) -> tuple[Slot, ...]:
        return next(iter(self.parts.values())).slots

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

    def input_arrays(self) -> tuple[str, ...]:
        return input_arrays_of(self.parts)

    def load(self) -> dict[str, np.ndarray]:
        arrays: dict[str, np.ndarray] = {}
        for part, source in self.parts.items():
            with errors_of_part(part):
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
            for note in source.notes(arrays_of_part(part, arrays))
        )

    @property
    def is_streamed(self) -> bool:
        return any(part.is_streamed for part in self.parts.values())

    def window(self, arrays: Arrays, split: Split, seed: int, step: int, lane: int = 0) -> Arrays:
        found: dict[str, np.ndarray] = {}
        for part, source in self.parts.items():
            own = source.window(arrays_of_part(part, arrays), split, seed, step, lane)
            found |= {f"{part}/{key}": array for key, array in own.items()}
        return found

    def sizes(self, arrays: Arrays) -> Mapping[str, int]:
        return {
            f"{part}_{task}": size
            for part, source in self.parts.items()
            for task, size in source.sizes(arrays_of_part(part, arrays)).items()
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
            for own in source.populations(arrays_of_part(part, arrays), split)
        )

    def query_members(self, arrays: Arrays, split: Split, draws: Draws) -> Mapping[str, Members]:
        found: dict[str, Members] = {}
        for part, own in self._draws_of_parts(arrays, draws).items():
            of_part = self.parts[part].query_members(arrays_of_part(part, arrays), split, own)
            for task, members in of_part.items():
                found[f"{part}_{task}"] = {
                    f"{part} {name}": values for name, values in members.items()
                }
        return found

    def every_example(self, arrays: Arrays, split: Split) -> tuple[HeldOut, ...]:
        sections: list[HeldOut] = []
        for part, source in self.parts.items():
            own = source.every_example(arrays_of_part(part, arrays), split)
            if not own:
                return ()
            sections += [self._section(part, section) for section in own]
        return tuple(sections)

    def _section(self, part: str, section: HeldOut) -> HeldOut:
        def batch(rows: np.ndarray) -> Batch:
            own = section.batch(rows)
            if self.episodes == "together":
                return joined_batch({part: own})
            return self._completed(part, own)

        members = {f"{part} {name}": values for name, values in section.members.items()}
        return HeldOut(section.rows, members, batch)

    def _odds(self, arrays: Arrays) -> np.ndarray:
        """How often each part is drawn, in the order of the parts."""
        return odds_of(self.parts, arrays, self.odds, self.temperature)

    def expected_labels(self, arrays: Arrays) -> Mapping[str, float]:
        shares = np.ones(len(self.parts))
        if self.episodes == "one":
            shares = self._odds(arrays)
        return {
            f"{part}_{task}": share * labels
            for share, (part, source) in zip(shares.tolist(), self.parts.items(), strict=True)
            for task, labels in source.expected_labels(arrays_of_part(part, arrays)).items()
        }

    def _draws_of_parts(self, arrays: Arrays, draws: Draws) -> dict[str, Draws]:
        """The parts that are drawn, with generators for the episodes that hold them."""
        if self.episodes == "together":
            return {part: draws.split(1) for part in self.parts}
        edges = np.cumsum(self._odds(arrays))[:-1]
        chosen = np.searchsorted(edges, draws.uniform(0, 1), side="right")
        return {
            part: draws[np.flatnonzero(chosen == number)]
            for number, part in enumerate(self.parts)
            if (chosen == number).any()
        }

    def draw_episodes(self, arrays: Arrays, split: Split, draws: Draws) -> Iterator[Bucket]:
        drawn: dict[str, list[Bucket]] = {}
        for part, own in self._draws_of_parts(arrays, draws).items():
            buckets = self.parts[part].draw_episodes(arrays_of_part(part, arrays), split, own)
            drawn[part] = list(buckets)
        if self.episodes == "together":
            yield from joined_buckets(drawn)
            return
        for part, buckets in drawn.items():
            for bucket in buckets:
                episodes = Episode(*(self._completed(part, batch) for batch in bucket.episodes))
                domains = partial(named_domains, part, bucket.domains)
                yield Bucket(episodes, bucket.indices, domains)

    def _completed(self, part: str, batch: Batch) -> Batch:
        return completed_batch(self.make_tasks(), part, batch)
