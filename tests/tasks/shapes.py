"""Generated pictures of rectangles and discs that carry a label of every kind."""

from collections.abc import Callable, Iterator, Mapping
from typing import Literal, Self

import numpy as np
import torch
from torch.utils._pytree import tree_map

from raymtl.data.base import Arrays, Bucket, Source, Split
from raymtl.data.draws import Draws
from raymtl.tasks import (
    binary,
    classification,
    depth,
    detection,
    multilabel,
    normals,
    regression,
    segmentation,
)
from raymtl.types import Batch, Episode, Task

NAMES = ("which", "disc", "shown", "amount", "place", "pixels", "far", "facing", "boxes")
MOST = 3  # boxes a picture
TILT = {
    0: (0.0, 0.0, 1.0),
    1: (0.6, 0.0, 0.8),
    2: (0.0, -0.6, 0.8),
}  # of the background, rectangles, discs


class Shapes(Source):
    """Pictures [3, side, side] with one to three objects, rectangles of one colour and discs of another.

    `which` is the class of the largest, `disc` whether there is a disc, `shown` which of the two classes are there,
    `amount` how many objects there are, `place` the middle of the largest; `pixels`, `far` and `facing` are maps, and
    `deep`, which is not among the tasks unless named, one more of depths. Where `unboxed`, that share of the pictures has no labels of `boxes`.
    """

    name: Literal["shapes"] = "shapes"
    tasks: tuple[str, ...] = NAMES
    side: int = 24
    shots: int = 4
    queries: int = 4
    unboxed: float = 0.3

    @property
    def task_names(self) -> tuple[str, ...]:
        return self.tasks

    def select_tasks(self, names: tuple[str, ...]) -> Self:
        return self.model_copy(update={"tasks": names})

    def as_supervised(self) -> Self:
        return self.model_copy(update={"shots": 1, "queries": self.queries + self.shots})

    def make_tasks(self) -> tuple[Task, ...]:
        size, middle, spread = (self.side, self.side), (self.side / 2,) * 2, (self.side / 6,) * 2
        kinds: dict[str, Callable[[str], Task]] = {
            "which": lambda name: classification(name, 2),
            "disc": binary,
            "shown": lambda name: multilabel(name, 2),
            "amount": lambda name: regression(name, 2.0, 0.8),
            "place": lambda name: regression(name, middle, spread, loss="huber"),
            "pixels": lambda name: segmentation(name, 3, size, width=8),
            "far": lambda name: depth(name, size, mean=2.0, std=0.5, width=8),
            "deep": lambda name: depth(name, size, width=8),
            "facing": lambda name: normals(name, size, width=8),
            "boxes": lambda name: detection(name, 2, size, stride=4, width=8, depth=1),
        }
        return tuple(kinds[name](name) for name in self.tasks)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (3, self.side, self.side)

    def load(self) -> dict[str, np.ndarray]:
        return {}

    def sizes(self, arrays: Arrays) -> Mapping[str, int]:
        return dict.fromkeys(self.tasks, 100)

    def draw_episodes(self, arrays: Arrays, split: Split, draws: Draws) -> Iterator[Bucket]:
        for index, (seed,) in zip(draws.indices, draws.bits(1), strict=True):
            rng = np.random.default_rng(int(seed))
            drawn = Episode(self.batch(self.shots, rng), self.batch(self.queries, rng))
            alone: Episode = tree_map(lambda leaf: leaf[None], drawn)
            yield Bucket(alone, np.array([index]), lambda: ["shapes"])

    def batch(self, number: int, rng: np.random.Generator) -> Batch:
        pictures, labels = zip(*(self.picture(rng) for _ in range(number)), strict=True)
        targets = {
            name: torch.from_numpy(np.stack([label[name] for label in labels]))
            for name in self.tasks
        }
        masks = {}
        if "boxes" in self.tasks and self.unboxed:
            masks["boxes"] = torch.from_numpy(rng.random(number) >= self.unboxed)
        return Batch(torch.from_numpy(np.stack(pictures)), targets, masks)

    def picture(self, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        side = self.side
        y, x = np.mgrid[:side, :side] + 0.5
        picture = rng.integers(0, 30, (3, side, side), dtype=np.uint8)
        pixels, far = np.zeros((side, side), np.int64), 2 + x / side
        boxes = np.full((MOST, 5), -1.0)
        amount = int(rng.integers(1, MOST + 1))
        for index in range(amount):
            label, half = int(rng.integers(2)), rng.uniform(side / 8, side / 4)
            middle = rng.uniform(half, side - half, 2)
            away = np.stack([x - middle[0], y - middle[1]])
            inside = np.hypot(*away) < half if label else np.abs(away).max(0) < half
            picture[:, inside] = 0
            picture[label, inside] = 200
            pixels[inside], far[inside] = 1 + label, 1.5 + 0.2 * index
            boxes[index] = [label, *(middle - half), *(middle + half)]
        facing = np.stack(
            [np.choose(pixels, [TILT[c][axis] for c in range(3)]) for axis in range(3)]
        )
        largest = int((boxes[:, 3] - boxes[:, 1]).argmax())
        hole = rng.random((side, side)) < 0.1  # what no camera measured
        return picture, {
            "which": np.int64(boxes[largest, 0]),
            "disc": np.int64((boxes[:, 0] == 1).any()),
            "shown": np.array([(boxes[:, 0] == 0).any(), (boxes[:, 0] == 1).any()], np.float64),
            "amount": np.float64(amount),
            "place": (boxes[largest, 1:3] + boxes[largest, 3:]) / 2,
            "pixels": np.where(hole, -1, pixels),
            "far": np.where(hole, 0.0, far),
            "deep": np.where(hole, 0.0, 5 - far),
            "facing": np.where(hole, 0.0, facing),
            "boxes": boxes,
        }
