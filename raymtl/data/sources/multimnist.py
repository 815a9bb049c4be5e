"""`multimnist`: pictures of two digits of MNIST (Sabour et al., 2017, arXiv:1710.09829), as
torchvision keeps it.
"""

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
import torch
from pydantic import AfterValidator, Field, NonNegativeInt, PositiveInt, model_validator

from raymtl.data.base import (
    Arrays,
    Bucket,
    ChosenTasks,
    HeldOut,
    Members,
    Population,
    Split,
    same_domain,
)
from raymtl.data.counts import Count, drawn, most
from raymtl.data.draws import Draws, alike
from raymtl.data.given import data_folder, each_once
from raymtl.tasks import classification
from raymtl.types import Batch, Episode, Task, UserError

GLYPH = 28  # side of a digit, pixels
SIDE = 36  # of the picture
FILES = {"train": 60_000, "t10k": 10_000}  # beginnings of the files' names -> digits in them
HELD_OUT = 5_000  # of the training digits: for validation
PAIRS = {"train": 60_000, "val": 10_000, "test": 10_000}  # that are fixed

DigitTask = Literal["left", "right"]


class MultiMNIST(ChosenTasks):
    """Pictures [1, 36, 36] of a digit at the top left and one at the bottom right, 28 x 28 each,
    the brighter showing.

    The tasks are which digit is on the `left` and which on the `right`, 10 classes each. An episode
    is `shots` and `queries` pairs drawn by chance, none of the fixed ones twice. A learner that
    does not adapt has no use for `shots`.

    The test's pairs are of MNIST's 10,000 test digits alone. Of the 60,000 training digits 5,000
    are held out, and the 10,000 pairs of validation are of those; training pairs are of the other
    55,000. Those of validation and test are fixed. `pairs: fixed`: so are 60,000 for training, in
    which every digit stands once on each side, and 5,000 of them twice; `fresh`: training draws
    other pairs in every step. `pairs_seed` decides which digits are held out and what is paired
    with what. Deviations: both papers train on all 60,000 digits and Sabour et al. shift digits by
    chance.

    `folder` is what torchvision calls `root`, the folder with `MNIST/raw`; if not given, the
    environment variable RAYMTL_DATA names it.
    """

    name: Literal["multimnist"] = "multimnist"
    folder: str | None = None
    pairs: Literal["fixed", "fresh"] = "fixed"
    pairs_seed: NonNegativeInt = 0
    tasks: Annotated[tuple[DigitTask, ...], Field(min_length=1), AfterValidator(each_once)] = (
        "left",
        "right",
    )
    shots: Count = 1
    queries: PositiveInt = 256

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        fewest = min(PAIRS.values())
        if most(self.shots) + self.queries > fewest:
            raise UserError(
                f"data.queries: expected at most the {fewest - most(self.shots)} pairs of the "
                f"smallest split that data.shots: {self.shots} leaves, got {self.queries}. Lower "
                "one of them."
            )
        return self

    @property
    def _most_queries(self) -> int:
        return min(PAIRS.values()) - 1

    def make_tasks(self) -> tuple[Task, ...]:
        return tuple(classification(name, 10) for name in self.tasks)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (1, SIDE, SIDE)

    def load(self) -> dict[str, np.ndarray]:
        digits, labels = read_digits(data_folder(self.folder, "MNIST/raw", "mnist"))
        rng = np.random.default_rng(self.pairs_seed)
        held_out, rest = np.split(rng.permutation(FILES["train"]), [HELD_OUT])
        members = {"train": rest, "val": held_out, "test": np.arange(FILES["train"], len(digits))}
        pairs = {split: _paired(members[split], number, rng) for split, number in PAIRS.items()}
        return {"digits": digits, "labels": labels, "train_digits": rest, **pairs}

    def sizes(self, arrays: Arrays) -> Mapping[str, int]:
        return dict.fromkeys(
            self.task_names, len(arrays["train" if self.pairs == "fixed" else "train_digits"])
        )

    @property
    def about_episodes(self) -> str:
        return (
            f"{self.queries} pairs of digits of the split, drawn at random, beside those to adapt "
            "to"
        )

    def populations(self, arrays: Arrays, split: Split) -> tuple[Population, ...]:
        return (Population("digit", len(np.unique(arrays[split]))),)

    def query_members(self, arrays: Arrays, split: Split, draws: Draws) -> Mapping[str, Members]:
        ((_, pairs, shots),) = self._draw(arrays, split, draws)
        members = self._members(arrays, split, pairs[0, shots:])
        return dict.fromkeys(self.tasks, members)

    def every_example(self, arrays: Arrays, split: Split) -> tuple[HeldOut, ...]:
        pairs = arrays[split]
        rows = np.arange(len(pairs))
        return (
            HeldOut(
                rows,
                self._members(arrays, split, pairs),
                lambda some: self.batch(arrays, pairs[some]),
            ),
        )

    def _members(self, arrays: Arrays, split: Split, pairs: np.ndarray) -> Members:
        return {"digit": np.searchsorted(np.unique(arrays[split]), pairs)}

    def draw_episodes(self, arrays: Arrays, split: Split, draws: Draws) -> Iterator[Bucket]:
        for own, pairs, shots in self._draw(arrays, split, draws):
            support, query = (
                self.batch(arrays, part) for part in (pairs[:, :shots], pairs[:, shots:])
            )
            domains = same_domain("pairs of digits", len(own))
            yield Bucket(Episode(support, query), own.indices, domains)

    def _draw(
        self, arrays: Arrays, split: Split, draws: Draws
    ) -> Iterator[tuple[Draws, np.ndarray, int]]:
        """Of the episodes that are alike: their generators, pairs [E, N, 2], and how many of these
        are the support.
        """
        for own, (shots,) in alike(draws, drawn(self.shots, draws)):
            number = shots + self.queries
            if split == "train" and self.pairs == "fresh":
                known = arrays["train_digits"]
                pairs = known[own.integers(len(known), number, 2)]
            else:
                pairs = arrays[split][own.choice(len(arrays[split]), number)]
            yield own, pairs, shots

    def batch(self, arrays: Arrays, pairs: np.ndarray) -> Batch:
        """The pictures of these pairs [..., 2], rows of `arrays["digits"]`, with their labels."""
        flat = pairs.reshape(-1, 2)
        inputs = compose(arrays["digits"], flat[:, 0], flat[:, 1])
        labels = torch.from_numpy(arrays["labels"][pairs])
        targets = {
            name: labels[..., column].contiguous()
            for column, name in enumerate(("left", "right"))
            if name in self.tasks
        }
        shape = pairs.shape[:-1]
        return Batch(
            inputs.reshape(*shape, 1, SIDE, SIDE), {name: targets[name] for name in self.tasks}, {}
        )


def _paired(members: np.ndarray, number: int, rng: np.random.Generator) -> np.ndarray:
    """Pairs [number, 2]; every member is as often left, and right, as the others, or once more."""
    left, right = (np.resize(rng.permutation(members), number) for _ in range(2))
    return np.stack([left, rng.permutation(right)], 1)


def compose(digits: np.ndarray, left: np.ndarray, right: np.ndarray) -> torch.Tensor:
    """Pictures [N, 1, 36, 36] uint8 of the digits with these indices [N]; where they overlap the
    brighter shows.
    """
    canvas = np.zeros((len(left), SIDE, SIDE), np.uint8)
    canvas[:, :GLYPH, :GLYPH] = digits[left]
    corner = canvas[:, -GLYPH:, -GLYPH:]
    np.maximum(corner, digits[right], out=corner)
    return torch.from_numpy(canvas[:, None])


@cache
def read_digits(root: Path) -> tuple[np.ndarray, np.ndarray]:
    """All digits [70000, 28, 28] uint8, those for training first, and what they are, [70000].

    Kept for the rest of the process, so neither can be written to. Raises UserError where a file is
    missing, or its size or labels are not MNIST's.
    """
    digits, labels = [], []
    for part, number in FILES.items():
        digits.append(
            _read(root, f"{part}-images-idx3-ubyte", 16, number * GLYPH**2).reshape(
                -1, GLYPH, GLYPH
            )
        )
        labels.append(_read(root, f"{part}-labels-idx1-ubyte", 8, number))
        if labels[-1].max() > 9:
            raise UserError(
                f"data.folder: expected labels from 0 to 9 in {part}-labels-idx1-ubyte, got "
                f"{labels[-1].max()} as number {labels[-1].argmax()}. Fetch the file again."
            )
    arrays = np.concatenate(digits), np.concatenate(labels).astype(np.int64)
    for array in arrays:
        array.setflags(write=False)
    return arrays


def _read(root: Path, name: str, header: int, size: int) -> np.ndarray:
    """What follows the header of an IDX file of bytes."""
    path = root / "MNIST" / "raw" / name
    if path.is_file():
        found = path.stat().st_size
    else:
        found = 0
    if found != header + size:
        raise UserError(
            f"data.folder: expected {header + size} bytes in {path}, got "
            f"{found or 'no such file'}. `raymtl data fetch mnist --root {root}` fetches it."
        )
    return np.fromfile(path, np.uint8, offset=header)
