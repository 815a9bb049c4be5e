"""`digits`: scikit-learn's 1,797 handwritten digits, two on every picture; no download."""

import functools
import math
from collections.abc import Mapping
from typing import Annotated, Literal, NamedTuple, Self

import numpy as np
import torch
from pydantic import AfterValidator, Field, PositiveInt, model_validator
from torch.nn import functional as F

from raymtl.data.base import (
    SPLITS,
    Arrays,
    Count,
    DrawnSource,
    Members,
    Population,
    Split,
    Ways,
    drawn,
    each_once,
    most,
)
from raymtl.tasks import classification, regression
from raymtl.types import Batch, Episode, Task, UserError

GLYPH = 8  # side of a digit on the canvas, pixels
OFFSET = 5  # of the right digit from the left one, down and right: they overlap by 3 pixels
SIDE = 16  # of the canvas
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


@functools.cache
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

    def query_members(
        self, arrays: Arrays, split: Split, rng: np.random.Generator
    ) -> Mapping[str, Members]:
        drawn_here = self._draw(arrays, split, rng)
        left, right = drawn_here.query.glyphs
        order = np.argsort(arrays[f"{split}_members"], axis=None)
        digits = np.searchsorted(
            arrays[f"{split}_members"].ravel(), np.stack([left, right], 1), sorter=order
        )
        if self.episodes == "classes":
            known = arrays["numbers"][CLASS_SPLIT[split]]
            whole = {
                "number": np.tile((known[:, None] == drawn_here.domain).argmax(0), (len(left), 1))
            }
        else:
            whole = {"angle": np.full(len(left), self.angles(split).index(drawn_here.domain[0]))}
        return {task: {**whole, "digit": digits} for task in self.task_names}

    def episode(
        self, arrays: Arrays, split: Split, rng: np.random.Generator
    ) -> tuple[Episode, str]:
        drawn_here = self._draw(arrays, split, rng)
        batches = [
            self._batch(arrays["glyphs"], part, drawn_here.domain) for part in drawn_here[:2]
        ]
        if self.episodes == "classes":
            return Episode(*batches), "numbers " + " ".join(
                f"{number:02d}" for number in drawn_here.domain
            )
        return Episode(*batches), f"{drawn_here.domain[0]:g} degrees"

    def _draw(self, arrays: Arrays, split: Split, rng: np.random.Generator) -> "Drawn":
        """All chances of an episode."""
        shuffled = rng.permuted(arrays[f"{split}_members"], axis=1)
        pools = np.array_split(shuffled, 2, axis=1)
        shots = drawn(self.shots, rng)
        if self.episodes == "classes":
            numbers = rng.choice(
                arrays["numbers"][CLASS_SPLIT[split]], drawn(self.ways, rng), replace=False
            )
            support = _draw_numbers(pools[0], numbers, shots, rng)
            return Drawn(support, _draw_numbers(pools[1], numbers, self.queries, rng), numbers)
        angle = float(rng.choice(self.angles(split)))
        support = _draw_digits(pools[0], shots, rng)
        return Drawn(support, _draw_digits(pools[1], self.queries, rng), np.array([angle]))

    def _batch(self, glyphs: np.ndarray, part: "Pairs", domain: np.ndarray) -> Batch:
        inputs = compose(glyphs, *part.glyphs)
        if self.episodes == "classes":
            return Batch(inputs, {"number": torch.from_numpy(part.labels["number"])}, {})
        targets: dict[str, torch.Tensor] = {
            name: torch.from_numpy(part.labels[name]) for name in self.tasks
        }
        return Batch(rotated(inputs, float(domain[0])), targets, {})


class Pairs(NamedTuple):
    """Pictures to be made: the glyphs on their left and right, indices [N] each, and their labels
    [N].
    """

    glyphs: tuple[np.ndarray, np.ndarray]
    labels: Mapping[str, np.ndarray]


class Drawn(NamedTuple):
    """An episode to be made; `domain` is its angle, or its numbers."""

    support: Pairs
    query: Pairs
    domain: np.ndarray


def _draw_digits(pool: np.ndarray, per_class: int, rng: np.random.Generator) -> Pairs:
    left, right = (rng.permutation(np.repeat(np.arange(10), per_class)) for _ in range(2))
    glyphs = _draw(pool, left, rng), _draw(pool, right, rng)
    return Pairs(glyphs, {"left": left, "right": right, "sum": left + right})


def _draw_numbers(
    pool: np.ndarray, numbers: np.ndarray, per_class: int, rng: np.random.Generator
) -> Pairs:
    target = np.repeat(np.arange(len(numbers)), per_class)
    tens, units = numbers[target] // 10, numbers[target] % 10
    return Pairs((_draw(pool, tens, rng), _draw(pool, units, rng)), {"number": target})


def _draw(pool: np.ndarray, digits: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """For each digit [N] the index [N] of a glyph of that digit out of the pool [10, M]."""
    glyphs: np.ndarray = pool[digits, rng.integers(pool.shape[1], size=len(digits))]
    return glyphs


def compose(glyphs: np.ndarray, left: np.ndarray, right: np.ndarray) -> torch.Tensor:
    """Pictures [N, 1, 16, 16] uint8 of the glyphs with these indices [N]; where they overlap the
    brighter shows.
    """
    start = (SIDE - GLYPH - OFFSET) // 2
    canvas = np.zeros((2, len(left), SIDE, SIDE), np.uint8)
    canvas[0, :, start : start + GLYPH, start : start + GLYPH] = glyphs[left]
    start += OFFSET
    canvas[1, :, start : start + GLYPH, start : start + GLYPH] = glyphs[right]
    return torch.from_numpy(canvas.max(0)[:, None])


def rotated(pictures: torch.Tensor, angle: float) -> torch.Tensor:
    """Pictures [N, 1, H, W] uint8, turned about their centre by `angle` degrees to the left."""
    if angle == 0:
        return pictures
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    theta = torch.tensor([[cos, -sin, 0.0], [sin, cos, 0.0]], dtype=torch.float32)
    # One picture of N channels: the grid is computed once for all.
    channels = pictures.transpose(0, 1).float()
    grid = F.affine_grid(theta[None], list(channels.shape), align_corners=False)
    return F.grid_sample(channels, grid, align_corners=False).round().byte().transpose(0, 1)
