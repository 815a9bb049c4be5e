"""`digits`: scikit-learn's 1,797 handwritten digits, two on every picture; no download."""

from collections.abc import Iterator, Mapping
from functools import cache, partial
from typing import Annotated, Literal, NamedTuple, Self

import numpy as np
import torch
from pydantic import AfterValidator, Field, PositiveInt, model_validator
from torch.nn import functional as F

from raymtl.data.base import SPLITS, Arrays, Bucket, DrawnSource, Members, Population, Split
from raymtl.data.counts import Count, Ways, drawn, most
from raymtl.data.draws import Draws, alike
from raymtl.data.given import each_once
from raymtl.data.source_messages import has_no_rows
from raymtl.data.sources.digit_pictures import (
    GLYPH,
    SIDE,
    Pairs,
    compose,
    draw_digits,
    draw_numbers,
    rotated,
)
from raymtl.tasks import classification, regression
from raymtl.types import Batch, Episode, Task, UserError

SPLIT_SHARE = {"train": 0.6, "val": 0.2, "test": 0.2}  # of the source digits of each class
CLASS_SPLIT = {
    "train": slice(0, 64),
    "val": slice(64, 80),
    "test": slice(80, 100),
}  # of the two-digit numbers
SPLIT_SEED = (
    20240229  # of which digits and numbers belong to which split; not the experiment's seed
)

Angles = Annotated[tuple[Annotated[float, Field(ge=0, lt=360)], ...], Field(min_length=1)]
DigitTask = Literal["left", "right", "sum"]


@cache
def _read_digits() -> tuple[np.ndarray, np.ndarray]:
    """Pictures [N, 8, 8] from 0 to 16 and their classes [N], read once: the file is a long text."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return digits.images, digits.target


class Digits(DrawnSource):
    """Pictures [1, 16, 16] of a digit at the top left and one at the bottom right, overlapping.

    `episodes: domains`: an episode is one rotation of the picture about its centre, in degrees
    counter-clockwise; the tasks on the same picture are the `left` digit, the `right` digit
    (classification, 10) and their `sum` (regression). Support and query hold `shots` and `queries`
    examples of every class of digit, left and right. `episodes: classes`: `ways` of the 100
    two-digit numbers, upright, `shots` and `queries` pictures of each; the one task, `number`, is
    which of the `ways` it is. `shots` and `ways` may be [least, most].

    The splits have disjoint angles (or numbers) and disjoint source digits; support and query of an
    episode have disjoint source digits.
    """

    name: Literal["digits"] = "digits"
    episodes: Literal["domains", "classes"] = "domains"
    tasks: Annotated[tuple[DigitTask, ...], Field(min_length=1), AfterValidator(each_once)] = (
        "left",
        "right",
        "sum",
    )
    shots: Count = 2
    queries: PositiveInt = 2
    ways: Ways = 5
    train_angles: Angles = (
        0,
        15,
        45,
        60,
        90,
        105,
        135,
        150,
        180,
        195,
        225,
        240,
        270,
        285,
        315,
        330,
    )
    val_angles: Angles = (30, 120, 210, 300)
    test_angles: Angles = (75, 165, 255, 345)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
            both = set(self.angles(one)) & set(self.angles(other))
            if both:
                raise UserError(
                    f"data.{other}_angles: expected none of the angles of data.{one}_angles, got "
                    f"{sorted(both)} in both. Meta-train, -validation and -test need disjoint "
                    "domains."
                )
        if self.episodes == "classes":
            available = min(part.stop - part.start for part in CLASS_SPLIT.values())
            if most(self.ways) > available:
                raise UserError(
                    f"data.ways: expected at most the {available} classes of the smallest split, "
                    f"got {self.ways}. Lower data.ways."
                )
        return self

    def angles(self, split: str) -> tuple[float, ...]:
        """The rotations of a split, degrees."""
        return {"train": self.train_angles, "val": self.val_angles, "test": self.test_angles}[split]

    def without_support(self, queries: int | None = None) -> Self:
        if queries is not None:
            raise has_no_rows(self)  # an episode has pictures of all digits
        return super().without_support()

    @property
    def task_names(self) -> tuple[str, ...]:
        if self.episodes == "domains":
            return self.tasks
        return ("number",)

    def select_tasks(self, names: tuple[str, ...]) -> Self:
        if self.episodes == "domains":
            return self.model_copy(update={"tasks": names})
        return self

    def make_tasks(self) -> tuple[Task, ...]:
        if self.episodes == "classes":
            return (classification("number", most(self.ways), few_shot=True),)
        # The sum of two independent uniform digits has mean 9 and variance 2 * 8.25.
        kinds = {"left": classification("left", 10), "right": classification("right", 10)}
        return tuple(kinds.get(name) or regression("sum", 9.0, 16.5**0.5) for name in self.tasks)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (1, SIDE, SIDE)

    def load(self) -> dict[str, np.ndarray]:
        pictures, classes = _read_digits()
        images = torch.from_numpy(pictures).float()[:, None] / 16
        glyphs = F.interpolate(images, size=(GLYPH, GLYPH), mode="bilinear", align_corners=False)
        rng = np.random.default_rng(SPLIT_SEED)
        members = [rng.permutation(np.flatnonzero(classes == digit)) for digit in range(10)]
        smallest = min(len(of_class) for of_class in members)
        arrays = {
            "glyphs": (glyphs[:, 0] * 255).round().byte().numpy(),
            "numbers": rng.permutation(100),
        }
        start = 0
        for split in SPLITS:
            stop = start + int(smallest * SPLIT_SHARE[split])
            arrays[f"{split}_members"] = np.stack(
                [of_class[start:stop] for of_class in members]
            )  # [10, M]
            start = stop
        return arrays

    def sizes(self, arrays: Arrays) -> Mapping[str, int]:
        return dict.fromkeys(self.task_names, arrays["train_members"].size)

    @property
    def about_episodes(self) -> str:
        if self.episodes == "classes":
            return (
                "some of the two-digit numbers of the split, with pictures of digits of the split"
            )
        return "one of the angles of the split, with pictures of digits of the split"

    def populations(self, arrays: Arrays, split: Split) -> tuple[Population, ...]:
        digits = Population("digit", arrays[f"{split}_members"].size)
        if self.episodes == "classes":
            return Population(
                "number", len(arrays["numbers"][CLASS_SPLIT[split]]), whole=True
            ), digits
        return Population("angle", len(self.angles(split)), whole=True), digits

    def query_members(self, arrays: Arrays, split: Split, draws: Draws) -> Mapping[str, Members]:
        (alone,) = self._draw(arrays, split, draws)
        domain = alone.domains[0]
        left, right = (glyphs[0] for glyphs in alone.query.glyphs)
        order = np.argsort(arrays[f"{split}_members"], axis=None)
        digits = np.searchsorted(
            arrays[f"{split}_members"].ravel(), np.stack([left, right], 1), sorter=order
        )
        if self.episodes == "classes":
            known = arrays["numbers"][CLASS_SPLIT[split]]
            whole = {"number": np.tile((known[:, None] == domain).argmax(0), (len(left), 1))}
        else:
            whole = {"angle": np.full(len(left), self.angles(split).index(domain[0]))}
        return {task: {**whole, "digit": digits} for task in self.task_names}

    def draw_episodes(self, arrays: Arrays, split: Split, draws: Draws) -> Iterator[Bucket]:
        for drawn_alike in self._draw(arrays, split, draws):
            support, query = (
                self._batch(arrays["glyphs"], pairs, drawn_alike.domains)
                for pairs in (drawn_alike.support, drawn_alike.query)
            )
            domains = partial(self._domain_names, drawn_alike.domains)
            yield Bucket(Episode(support, query), drawn_alike.indices, domains)

    def _domain_names(self, domains: np.ndarray) -> list[str]:
        if self.episodes == "classes":
            return ["numbers " + " ".join(f"{number:02d}" for number in own) for own in domains]
        return [f"{angle:g} degrees" for (angle,) in domains]

    def _draw(self, arrays: Arrays, split: Split, draws: Draws) -> "Iterator[Drawn]":
        """All chances of the episodes that are alike."""
        shots = drawn(self.shots, draws)
        ways: int | np.ndarray = 1
        if self.episodes == "classes":
            ways = drawn(self.ways, draws)
        for own, (num_ways, num_shots) in alike(draws, ways, shots):
            pools = _halves(arrays[f"{split}_members"], own)
            if self.episodes == "classes":
                known = arrays["numbers"][CLASS_SPLIT[split]]
                numbers = known[own.choice(len(known), num_ways)]
                support = draw_numbers(pools[0], numbers, num_shots, own)
                query = draw_numbers(pools[1], numbers, self.queries, own)
                yield Drawn(support, query, numbers, own.indices)
            else:
                angles = np.array(self.angles(split))
                support = draw_digits(pools[0], num_shots, own)
                query = draw_digits(pools[1], self.queries, own)
                yield Drawn(support, query, angles[own.integers(len(angles), 1)], own.indices)

    def _batch(self, glyphs: np.ndarray, pairs: "Pairs", domains: np.ndarray) -> Batch:
        num_episodes, number = pairs.glyphs[0].shape
        left, right = (own.reshape(-1) for own in pairs.glyphs)
        inputs = compose(glyphs, left, right).reshape(num_episodes, number, 1, SIDE, SIDE)
        names: tuple[str, ...] = ("number",)
        if self.episodes == "domains":
            names = self.tasks
            inputs = rotated(inputs, torch.from_numpy(domains[:, 0].astype(np.float64)))
        return Batch(inputs, {name: torch.from_numpy(pairs.labels[name]) for name in names}, {})


class Drawn(NamedTuple):
    """Episodes to be made, with their indices [E]."""

    support: Pairs
    query: Pairs
    domains: np.ndarray
    """[E, 1] angles, or [E, ways] numbers."""
    indices: np.ndarray


def _halves(members: np.ndarray, draws: Draws) -> tuple[np.ndarray, np.ndarray]:
    """The glyphs [10, M] of each class parted at random, [E, 10, M / 2] twice."""
    num_classes, number = members.shape
    order = draws.split(num_classes).choice(number, number)
    shuffled = np.take_along_axis(members[None], order.reshape(-1, num_classes, number), 2)
    half = (number + 1) // 2
    return shuffled[..., :half], shuffled[..., half:]
