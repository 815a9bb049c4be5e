"""Kinds whose targets are maps, with a value for every pixel; and the numbers in files of maps."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
from torch import Tensor

from raymtl.types import LabelForm, TaskKind, UserError


class MapSettings(Protocol):
    """What a user can say of the maps of a task: keys below `data.tasks.NAME`."""

    @property
    def classes(self) -> tuple[bool | int | float | str, ...] | None:
        """The names of the classes."""

    @property
    def values(self) -> tuple[int, ...] | None:
        """The numbers that stand for the classes."""

    @property
    def ignore(self) -> int | tuple[int, ...] | None:
        """The numbers that say nothing."""

    @property
    def scale(self) -> float | None:
        """What 1 in a map stands for."""


class FittedMaps(Protocol):
    """What was found in the maps of a task, by which they are encoded."""

    @property
    def asked(self) -> MapSettings:
        """What the user said."""

    @property
    def values(self) -> tuple[int, ...]:
        """The numbers that stand for the classes."""

    @property
    def ignored(self) -> tuple[int, ...]:
        """The numbers that say nothing."""

    @property
    def colours(self) -> bool:
        """Whether both are colours, written 0xRRGGBB."""


class MapFiles(Protocol):
    """The maps that a task is fitted on."""

    @property
    def first(self) -> str:
        """The name of the first map, for errors."""

    def __len__(self) -> int:
        """How many maps there are."""

    def read(self, take: Callable[[str, np.ndarray], Any]) -> list[Any]:
        """What `take(name, values)` returns of each map that can be read, without what is None."""


class MapKind(TaskKind):
    """A kind whose targets are maps. What it does not override fits any map of numbers."""

    label_form: ClassVar[LabelForm] = "map"
    is_dense = True
    is_map = True
    dtype: ClassVar[type[np.generic]]
    """Of targets in memory."""
    channels: ClassVar[tuple[int, ...]] = ()
    """Axes of a target before height and width."""
    missing_value: ClassVar[int] = 0
    """What stands in a target where a pixel has no value."""
    turns_with_view: ClassVar[bool] = False
    """Whether values are directions, which are others where the picture is turned."""
    settings: ClassVar[tuple[str, ...]] = ()
    """The keys of `MapSettings` that the kind reads; others are refused."""

    @abstractmethod
    def encode(
        self, task: str, fitted: FittedMaps, values: np.ndarray, map_name: str
    ) -> np.ndarray:
        """The target [*channels, H, W] of the numbers in a file, [H, W] or [H, W, C].

        Raises UserError, which begins with the name of the map, for numbers that are none.
        """

    @abstractmethod
    def render(self, target: np.ndarray) -> np.ndarray:
        """A target as a picture [H, W, 3] uint8."""

    def mirrored(self, target: Tensor) -> Tensor:
        """What the values [*channels, H, W] become of a picture that was mirrored, left to right;
        their places are mirrored already.
        """
        return target

    def zoomed(self, target: Tensor, factor: float) -> Tensor:
        """What the values become of a picture that was enlarged by a factor."""
        return target

    def fit(self, task: str, given: MapSettings, maps: MapFiles) -> dict[str, Any]:
        """The fields of `FittedMaps` and the moments that are found in the maps for training."""
        return {}

    def legend(
        self, target: np.ndarray, classes: Sequence[str]
    ) -> list[tuple[str, tuple[int, int, int]]]:
        """The classes in a target, each with the colour that `render` gives it."""
        return []

    def num_bytes(self, size: tuple[int, int]) -> int:
        """What one target takes in memory."""
        pixels = size[0] * size[1]
        for axis in self.channels:
            pixels *= axis
        return pixels * np.dtype(self.dtype).itemsize


def share_of(valid: np.ndarray) -> float:
    """The share of what is valid, 0 of nothing."""
    if valid.size:
        return float(valid.mean())
    return 0.0


def moments_of(values: np.ndarray) -> Mapping[str, float]:
    """Mean, standard deviation, least and largest; none where there are no values."""
    if not values.size:
        return {}
    return {key: float(getattr(values, key)()) for key in ("mean", "std", "min", "max")}


def is_colour(values: np.ndarray) -> bool:
    """Whether the values of a picture are more than greys."""
    several = values.ndim == 3 and values.shape[-1] == 3 and values.dtype == np.uint8
    return several and not bool((values == values[..., :1]).all())


def packed(values: np.ndarray) -> np.ndarray:
    """Colours [H, W, 3] as the numbers that six hexadecimal digits write, [H, W] int64; greys [H,
    W] as such too.
    """
    channels = np.broadcast_to(values.reshape(*values.shape[:2], -1), (*values.shape[:2], 3))
    red, green, blue = np.moveaxis(channels, -1, 0)
    codes: np.ndarray = red.astype(np.int64) << 16 | green.astype(np.int64) << 8 | blue
    return codes


def flat(values: np.ndarray, map_name: str) -> np.ndarray:
    """[H, W] out of that, [H, W, 1], [1, H, W] or the same grey three times. Raises UserError."""
    three_bytes = values.ndim == 3 and values.shape[-1] == 3 and values.dtype == np.uint8
    if three_bytes and not is_colour(values):
        values = values[..., 0]
    if values.ndim == 3 and values.shape[0] == 1:
        values = values[0]
    elif values.ndim == 3 and values.shape[-1] == 1:
        values = values[..., 0]
    if values.ndim != 2 or not values.size:
        if values.ndim == 3 and values.dtype == np.uint8:
            got = "colours"
        else:
            got = f"an array of shape {values.shape}"
        raise UserError(
            f"{map_name}: expected a number for every pixel, got {got}. Save it as grey numbers "
            "or as .npy."
        )
    return values


def whole_numbers(values: np.ndarray, map_name: str, colours: bool = False) -> np.ndarray:
    """[H, W] int64, -1 where there is none; of `colours` packed ones. Raises UserError for what is
    no whole number.
    """
    if colours and values.dtype == np.uint8 and (values.ndim == 2 or values.shape[-1] == 3):
        return packed(values)
    numbers = flat(values, map_name)
    if not np.issubdtype(numbers.dtype, np.floating):
        return numbers.astype(np.int64)
    numbers = np.where(np.isnan(numbers), -1, numbers)
    odd = numbers[(numbers != np.round(numbers)) | (np.abs(numbers) > 2**31)]
    if odd.size:
        raise UserError(
            f"{map_name}: expected whole numbers, those of classes, got {float(odd[0]):g}. "
            "Correct the map."
        )
    return numbers.astype(np.int64)


def vectors(values: np.ndarray, map_name: str) -> np.ndarray:
    """[3, H, W] float32, of the length that they have, from arrays in that order or in [H, W, 3];
    colours stand for -1 at 0 to 1 at 255. Raises UserError.
    """
    if values.ndim == 2 and values.dtype == np.uint8:  # nothing but greys
        values = np.repeat(values[..., None], 3, -1)
    if values.ndim != 3 or 3 not in (values.shape[0], values.shape[-1]):
        raise UserError(
            f"{map_name}: expected three numbers for every pixel, got an array of shape "
            f"{values.shape}."
        )
    if values.shape[-1] == 3:
        values = np.moveaxis(values, -1, 0)
    numbers: np.ndarray = values.astype(np.float32)
    if values.dtype == np.uint8:
        return numbers / 127.5 - 1
    finite: np.ndarray = np.nan_to_num(numbers)
    return finite
