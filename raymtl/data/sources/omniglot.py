"""`omniglot`: handwritten characters (Lake et al., 2015, doi:10.1126/science.aab3050), in the
layout of torchvision.
"""

from collections.abc import Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import NonNegativeInt, PositiveInt, model_validator

from raymtl.data.base import SPLITS, Arrays, Bucket, Members, Population, SingleTask, Split
from raymtl.data.counts import Count, Ways, drawn, most
from raymtl.data.draws import Draws, alike
from raymtl.data.given import data_folder
from raymtl.tasks import classification
from raymtl.types import Batch, Episode, Task, UserError

SIDE = 28  # pixels
DRAWINGS = 20  # of each character, by as many people
PARTS = {"images_background": 964, "images_evaluation": 659}  # folders -> characters
TRAIN, VAL = 1100, 100  # characters of the random split; the rest is for the test


class Omniglot(SingleTask):
    """Pictures [1, 28, 28] of handwritten characters, strokes bright; an episode is `ways` classes
    of them.

    The one task, `character`, is which of the `ways` it is; support and query hold `shots` and
    `queries` of the 20 drawings of every class, none twice. With `rotations` a character turned by
    90, 180 or 270 degrees is a class of its own, in every split, as in Matching and Prototypical
    Networks. `shots` and `ways` may be [least, most].

    `train_ways` is how many classes the episodes of training have, where not as many as the others:
    prototypes are learned best from more classes than they are tested on. Heads then have an output
    for each of the most.

    `split: random`: 1,100 characters for training, 100 for validation, 423 for the test, shuffled
    by `split_seed`. `split: background`: the test is the original evaluation set, 659 characters of
    other alphabets; of the background set 100 characters, shuffled by `split_seed`, are for
    validation and 864 for training.

    `folder` is what torchvision calls `root`, the folder with `omniglot-py`; if not given, the
    environment variable RAYMTL_DATA names it.
    """

    task: ClassVar[str] = "character"
    input_array: ClassVar[str] = "drawings"
    name: Literal["omniglot"] = "omniglot"
    folder: str | None = None
    split: Literal["random", "background"] = "random"
    split_seed: NonNegativeInt = 0
    rotations: bool = True
    ways: Ways = 5
    train_ways: Ways | None = None
    shots: Count = 1
    queries: PositiveInt = 5

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if most(self.ways) > VAL * self._turns:
            raise UserError(
                f"data.ways: expected at most the {VAL * self._turns} classes of the smallest "
                f"split, got {self.ways}. Lower data.ways."
            )
        num_train = (
            TRAIN if self.split == "random" else PARTS["images_background"] - VAL
        ) * self._turns
        if most(self._ways("train")) > num_train:
            raise UserError(
                f"data.train_ways: expected at most the {num_train} classes of the training split, "
                f"got {self.train_ways}. Lower data.train_ways."
            )
        if most(self.shots) >= DRAWINGS:
            raise UserError(
                f"data.shots: expected at most {DRAWINGS - 1} of the {DRAWINGS} drawings of a "
                f"character, for the query set needs one, got {self.shots}. Lower data.shots."
            )
        if most(self.shots) + self.queries > DRAWINGS:
            raise UserError(
                f"data.queries: expected at most the {DRAWINGS - most(self.shots)} drawings of a "
                f"character that data.shots: {self.shots} leaves of {DRAWINGS}, got "
                f"{self.queries}. Lower one of them."
            )
        return self

    @property
    def _turns(self) -> int:
        if self.rotations:
            return 4
        return 1

    def _ways(self, split: Split) -> int | tuple[int, int]:
        if split == "train" and self.train_ways is not None:
            return self.train_ways
        return self.ways

    @property
    def numbers_classes_anew(self) -> bool:
        return True

    @property
    def _most_queries(self) -> int:
        return DRAWINGS - 1

    def make_tasks(self) -> tuple[Task, ...]:
        return (
            classification(
                "character", max(most(self._ways("train")), most(self.ways)), few_shot=True
            ),
        )

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (1, SIDE, SIDE)

    def load(self) -> dict[str, np.ndarray]:
        drawings, names = read_drawings(data_folder(self.folder, "omniglot-py", "omniglot"))
        if self.rotations:
            # All characters upright, then all of them turned once, and so on.
            drawings = np.concatenate(
                [np.rot90(drawings, turn, (2, 3)) for turn in range(self._turns)]
            )
        rng = np.random.default_rng(self.split_seed)
        if self.split == "random":
            parts = np.split(rng.permutation(len(names)), [TRAIN, TRAIN + VAL])
        else:
            background = PARTS["images_background"]
            held_out, rest = np.split(rng.permutation(background), [VAL])
            parts = [rest, held_out, np.arange(background, len(names))]
        return {"drawings": drawings, "names": names, **dict(zip(SPLITS, parts, strict=True))}

    def sizes(self, arrays: Arrays) -> Mapping[str, int]:
        return dict.fromkeys(self.task_names, len(arrays["train"]) * self._turns * DRAWINGS)

    @property
    def about_episodes(self) -> str:
        return (
            f"{self.ways} characters, {self.shots} drawings of each to adapt to, {self.queries} to "
            "predict"
        )

    def populations(self, arrays: Arrays, split: Split) -> tuple[Population, ...]:
        return (Population("character", len(arrays[split]), whole=True),)

    def query_members(self, arrays: Arrays, split: Split, draws: Draws) -> Mapping[str, Members]:
        ((_, classes, _),) = self._draw(arrays, split, draws)
        # A character is one member, whichever way its drawings are turned.
        characters = np.tile(classes[0] // self._turns, (classes.shape[1] * self.queries, 1))
        return {"character": {"character": characters}}

    def _draw(
        self, arrays: Arrays, split: Split, draws: Draws
    ) -> Iterator[tuple[Draws, np.ndarray, int]]:
        """Of the episodes that are alike: their generators, classes [E, ways], and shots."""
        num_classes = len(arrays[split]) * self._turns
        ways, shots = drawn(self._ways(split), draws), drawn(self.shots, draws)
        for own, (num_ways, num_shots) in alike(draws, ways, shots):
            yield own, own.choice(num_classes, num_ways), num_shots

    def draw_episodes(self, arrays: Arrays, split: Split, draws: Draws) -> Iterator[Bucket]:
        num_characters = len(arrays["names"])
        for own, classes, shots in self._draw(arrays, split, draws):
            characters, turns = arrays[split][classes // self._turns], classes % self._turns
            ways = classes.shape[1]
            order = own.split(ways).choice(DRAWINGS, shots + self.queries)
            first = (turns * num_characters + characters) * DRAWINGS
            rows = first[..., None] + order.reshape(*classes.shape, -1)
            support, query = (
                self._batch(arrays["drawings"], part)
                for part in (rows[..., :shots], rows[..., shots:])
            )
            names = partial(_domains, arrays["names"][characters], turns)
            yield Bucket(Episode(support, query), own.indices, names)

    def _batch(self, drawings: np.ndarray, rows: np.ndarray) -> Batch:
        """The drawings with these numbers [E, ways, N], one class after the other."""
        num_episodes, ways, per_class = rows.shape
        if drawings.dtype == np.uint8:  # others are features already
            drawings = drawings.reshape(-1, *self.input_shape)
        pictures = np.take(drawings, rows.reshape(num_episodes, -1), axis=0)
        labels = torch.arange(ways).repeat_interleave(per_class).repeat(num_episodes, 1)
        return Batch(torch.from_numpy(pictures), {"character": labels}, {})


def _domains(names: np.ndarray, turns: np.ndarray) -> list[str]:
    """Names and turns [E, ways] -> the classes of each episode in words."""
    domains = []
    for episode_names, episode_turns in zip(names.tolist(), turns.tolist(), strict=True):
        words = []
        for name, turn in zip(episode_names, episode_turns, strict=True):
            words.append(f"{name} at {90 * turn}°" if turn else name)
        domains.append(", ".join(words))
    return domains


@cache
def read_drawings(root: Path) -> tuple[np.ndarray, np.ndarray]:
    """All drawings [1623, 20, 28, 28] uint8, and the names [1623] of the characters: alphabet and
    number.

    The background set comes first, in the order of the folders' names. Kept for the rest of the
    process, so neither can be written to. Raises UserError where the folders are not all there.
    """
    from PIL import Image

    drawings, names = [], []
    for part, expected in PARTS.items():
        folder = root / "omniglot-py" / part
        characters = sorted(folder.glob("*/character*"))
        if len(characters) != expected:
            raise UserError(
                f"data.folder: expected {expected} characters under {folder} "
                f"(ALPHABET/characterNN), got {len(characters)}. `raymtl data fetch omniglot "
                f"--root {root}` fetches them."
            )
        for character in characters:
            files = sorted(character.glob("*.png"))
            if len(files) != DRAWINGS:
                raise UserError(
                    f"data.folder: expected {DRAWINGS} drawings in {character}, got {len(files)}. "
                    f"Move {folder} away and call `raymtl data fetch omniglot --root {root}`."
                )
            for file in files:
                with Image.open(file) as picture:
                    small = picture.convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
                drawings.append(255 - np.asarray(small))
            names.append(f"{character.parent.name} {character.name.removeprefix('character')}")
    arrays = np.stack(drawings).reshape(-1, DRAWINGS, SIDE, SIDE), np.array(names)
    for array in arrays:
        array.setflags(write=False)
    return arrays
