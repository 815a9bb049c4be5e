"""`nyuv2`: classes, depth and normals of rooms (Silberman et al., 2012), prepared for MTAN
(arXiv:1803.10704).
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Self

import numpy as np
import torch
from pydantic import AfterValidator, Field, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_map

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
from raymtl.data.formats.nyuv2 import (
    FRAMES,
    HEIGHT,
    NUM_CLASSES,
    WIDTH,
    check_folder,
    read_frame,
    root_of,
)
from raymtl.data.given import each_once
from raymtl.tasks import depth, normals, segmentation
from raymtl.types import Batch, Episode, Task, UserError

SCALES = (1.0, 1.2, 1.5)  # of the crops
RoomTask = Literal["segmentation", "depth", "normals"]
Side = Annotated[int, Field(ge=8)]


class NYUv2(ChosenTasks):
    """Pictures [3, height, width] of rooms; every pixel has a class, a depth in metres and the
    normal of its surface.

    An episode is `shots` + `queries` frames at random. Pixels without a label are masked one by
    one: classes of -1, depths of 0 and normals of 0 say nothing. The loss of the depth is in
    metres, as published.

    The 654 frames of the folder `val` are the test. The published protocol has no validation, and
    takes the best or the last epochs on the test itself; here `held_out` of the 795 frames for
    training, drawn by `split_seed`, are for validation and are not trained on. Frames of a room may
    be in both, for the preparation does not name the rooms.

    With `augment` a frame for training is cropped to 1, 1/1.2 or 1/1.5 of its sides and enlarged
    again, its depth divided by as much, and mirrored by even odds, which turns x of its normals.
    Deviations from the authors' RandomScaleCrop: normals are taken from the nearest pixel, where
    theirs are interpolated, so that no pixel is half missing; pictures are interpolated between
    middles of pixels, where theirs are between corners, and rounded to 8 bits.

    `size` is [height, width] of what is learned from, by default that of the files, 288 x 384;
    smaller ones are for processors without a GPU: pictures are averaged, maps taken from the
    nearest pixel.

    `folder` has the folders `train` and `val`, each with `image`, `label`, `depth` and `normal` of
    files 0.npy, 1.npy ...; if not given, it is `nyuv2` in the folder that the environment variable
    RAYMTL_DATA names. Files are mapped into memory frame by frame and never all read, so all
    machines must reach them.
    """

    name: Literal["nyuv2"] = "nyuv2"
    folder: str | None = None
    tasks: Annotated[tuple[RoomTask, ...], Field(min_length=1), AfterValidator(each_once)] = (
        "segmentation",
        "depth",
        "normals",
    )
    size: tuple[Side, Side] = (HEIGHT, WIDTH)
    augment: bool = False
    held_out: PositiveInt = 80
    split_seed: NonNegativeInt = 0
    shots: Count = 1
    queries: PositiveInt = 4
    width: PositiveInt = 32
    """Channels of the heads."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.size[0] > HEIGHT or self.size[1] > WIDTH:
            raise UserError(
                f"data.size: expected at most {HEIGHT} x {WIDTH}, as the files are, got "
                f"{list(self.size)}. Lower it."
            )
        frames = most(self.shots) + self.queries
        if frames > self._least:
            raise UserError(
                f"data.held_out: expected {frames} frames at least, those of an episode "
                "(data.shots + data.queries), for validation and for training each, got "
                f"{self.held_out} of {FRAMES['train']}. Change one of them."
            )
        return self

    @property
    def _most_queries(self) -> int:
        return self._least - 1

    @property
    def _least(self) -> int:
        """Frames of the smaller one of training and validation."""
        return min(self.held_out, FRAMES["train"] - self.held_out)

    def make_tasks(self) -> tuple[Task, ...]:
        kinds = {
            "segmentation": segmentation("segmentation", NUM_CLASSES, self.size, width=self.width),
            "depth": depth("depth", self.size, width=self.width),
            "normals": normals("normals", self.size, width=self.width),
        }
        return tuple(kinds[name] for name in self.tasks)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (3, *self.size)

    def load(self) -> dict[str, np.ndarray]:
        root = root_of(self.folder)
        check_folder(root)
        order = np.random.default_rng(self.split_seed).permutation(FRAMES["train"])
        return {
            "train": np.sort(order[self.held_out :]),
            "val": np.sort(order[: self.held_out]),
            "test": np.arange(FRAMES["val"]),
            "root": np.array(str(root)),
        }

    def sizes(self, arrays: Arrays) -> Mapping[str, int]:
        return dict.fromkeys(self.task_names, len(arrays["train"]))

    @property
    def about_episodes(self) -> str:
        return (
            f"{self.shots} frames to adapt to and {self.queries} to predict of the split, drawn at "
            "random"
        )

    def populations(self, arrays: Arrays, split: Split) -> tuple[Population, ...]:
        return (Population("frame", len(arrays[split])),)

    def query_members(self, arrays: Arrays, split: Split, draws: Draws) -> Mapping[str, Members]:
        ((_, numbers, shots),) = self._draw(arrays, split, draws)
        frames = np.searchsorted(arrays[split], numbers[0, shots:])
        return {task: {"frame": frames} for task in self.tasks}

    def every_example(self, arrays: Arrays, split: Split) -> tuple[HeldOut, ...]:
        numbers, folder = arrays[split], _folder_of(arrays, split)

        def batch(some: np.ndarray) -> Batch:
            return self._batch([self._frame(folder, int(number), None) for number in some])

        return (HeldOut(numbers, {"frame": np.arange(len(numbers))}, batch),)

    def draw_episodes(self, arrays: Arrays, split: Split, draws: Draws) -> Iterator[Bucket]:
        folder = _folder_of(arrays, split)
        for own, numbers, shots in self._draw(arrays, split, draws):
            crops: Sequence[Crop | None] = [None] * numbers.size
            if self.augment and split == "train":
                crops = _draw_crops(own, numbers.shape[1])
            frames = [
                self._frame(folder, number, crop)
                for number, crop in zip(numbers.reshape(-1).tolist(), crops, strict=True)
            ]
            # [E, shots + queries, ...]
            every = _stacked(self._batch(frames), numbers.shape)
            support = tree_map(lambda leaf, end=shots: leaf[:, :end].contiguous(), every)
            query = tree_map(lambda leaf, start=shots: leaf[:, start:].contiguous(), every)
            domains = same_domain(f"frames of {folder.name}", len(own))
            yield Bucket(Episode(support, query), own.indices, domains)

    def _draw(
        self, arrays: Arrays, split: Split, draws: Draws
    ) -> Iterator[tuple[Draws, np.ndarray, int]]:
        """Of the episodes that are alike: their generators, the numbers of all their frames
        [E, N], and how many of these are the support.
        """
        for own, (shots,) in alike(draws, drawn(self.shots, draws)):
            chosen = own.choice(len(arrays[split]), shots + self.queries)
            yield own, arrays[split][chosen], shots

    def _batch(self, frames: Sequence["Frame"]) -> Batch:
        targets: dict[str, Tensor] = {
            name: torch.stack([getattr(frame, name) for frame in frames]) for name in self.tasks
        }
        return Batch(torch.stack([frame.image for frame in frames]), targets, {})

    def _frame(self, folder: Path, number: int, crop: "Crop | None") -> "Frame":
        """One frame of `size`, or that part of it."""
        if crop is None:
            crop = Crop(1.0, 0, 0, mirrored=False)
        rows, columns = (
            slice(crop.top, crop.top + int(HEIGHT / crop.scale)),
            slice(crop.left, crop.left + int(WIDTH / crop.scale)),
        )
        found = read_frame(folder, number, rows, columns)
        image = _resized(found["image"], self.size, nearest=False)
        classes, metres, vectors = (
            _resized(found[part], self.size, nearest=True) for part in ("label", "depth", "normal")
        )
        frame = Frame(
            (image * 255).round().clamp(0, 255).byte(),
            classes[0].to(torch.int16),
            metres[0] / crop.scale,
            vectors,
        )
        if crop.mirrored:
            return mirror(frame)
        return frame


class Crop(NamedTuple):
    """The part of a frame that is enlarged to the whole, and whether it is mirrored."""

    scale: float
    top: int
    left: int
    mirrored: bool


def _draw_crops(draws: Draws, num_frames: int) -> list[Crop]:
    """A crop for each of this many frames of each episode, episode after episode."""
    scales = np.array(SCALES)[draws.integers(len(SCALES), num_frames)]
    tops, lefts = (
        (draws.uniform(0, 1, num_frames) * (side - (side / scales).astype(int) + 1)).astype(int)
        for side in (HEIGHT, WIDTH)
    )
    mirrored = draws.coins(num_frames)
    columns = (part.reshape(-1).tolist() for part in (scales, tops, lefts, mirrored))
    return [Crop(*own) for own in zip(*columns, strict=True)]


def _stacked(batch: Batch, shape: tuple[int, ...]) -> Batch:
    """[E * N, ...] -> [E, N, ...]."""
    whole: Batch = tree_map(lambda leaf: leaf.unflatten(0, shape), batch)
    return whole


def _folder_of(arrays: Arrays, split: Split) -> Path:
    return Path(str(arrays["root"])) / ("val" if split == "test" else "train")


class Frame(NamedTuple):
    """One picture with all that is known of it: uint8 [3, H, W], int16 [H, W], float32 [H, W] and
    [3, H, W].
    """

    image: Tensor
    segmentation: Tensor
    depth: Tensor
    normals: Tensor


def mirror(frame: Frame) -> Frame:
    """Left and right exchanged, x of the normals with them."""
    image, classes, metres, vectors = (part.flip(-1) for part in frame)
    return Frame(image, classes, metres, vectors * torch.tensor([-1.0, 1.0, 1.0])[:, None, None])


def _resized(values: np.ndarray, size: tuple[int, int], *, nearest: bool) -> Tensor:
    """[H, W, C] or [H, W] -> [C, *size] float32."""
    tensor = torch.from_numpy(np.array(values, np.float32))
    if tensor.ndim == 3:
        tensor = tensor.movedim(-1, 0)
    else:
        tensor = tensor[None]
    if tensor.shape[1:] == size:
        return tensor
    if nearest:
        return F.interpolate(tensor[None], size, mode="nearest-exact")[0]
    return F.interpolate(tensor[None], size, mode="bilinear", align_corners=False, antialias=True)[
        0
    ]
