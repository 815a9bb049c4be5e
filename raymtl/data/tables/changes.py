"""Changes of one picture, which its boxes and maps follow; computed by torchvision's kernels."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from raymtl.tasks.maps import MapKind
from raymtl.types import TaskKind

LEAST_LEFT = 0.1
"""The least share of a box's area that must stay inside the picture: boxes with less are removed.
"""
NO_BOX = -1.0
"""The class of a row of boxes that holds none."""


class Example(NamedTuple):
    """A picture uint8 [C, H, W] with its labels: maps [*channels, H, W], boxes [M, 5]."""

    picture: Tensor
    labels: Mapping[str, Tensor]


class Change(Protocol):
    """What happens to a picture, and to what has places in it."""

    def picture(self, picture: Tensor) -> Tensor:
        """The changed picture, of the same size."""

    def map(self, values: Tensor, kind: MapKind) -> Tensor:
        """The map [*channels, H, W] that belongs to the changed picture."""

    def boxes(self, corners: Any) -> Any:
        """Corners of boxes, as torchvision's BoundingBoxes, in the changed picture."""


class Flipped(NamedTuple):
    """Mirrored, left to right, or not."""

    is_flipped: bool

    def picture(self, picture: Tensor) -> Tensor:
        flipped: Tensor = self._flip(picture)
        return flipped

    def map(self, values: Tensor, kind: MapKind) -> Tensor:
        if not self.is_flipped:
            return values
        return kind.mirrored(self._flip(values))

    def boxes(self, corners: Any) -> Any:
        return self._flip(corners)

    def _flip(self, values: Any) -> Any:
        from torchvision.transforms.v2 import functional

        if not self.is_flipped:
            return values
        return functional.horizontal_flip(values)


class Cropped(NamedTuple):
    """A part of the picture, enlarged to the whole."""

    top: int
    left: int
    height: int
    width: int

    def picture(self, picture: Tensor) -> Tensor:
        cropped: Tensor = self._crop(picture, tuple(picture.shape[-2:]))
        return cropped

    def map(self, values: Tensor, kind: MapKind) -> Tensor:
        from torchvision.transforms.v2 import InterpolationMode

        size = tuple(values.shape[-2:])
        nearest = {"interpolation": InterpolationMode.NEAREST_EXACT}
        flat = values.reshape(-1, *size).float()
        cropped = self._crop(flat, size, **nearest).reshape(values.shape).to(values.dtype)
        return kind.zoomed(cropped, (size[0] * size[1] / (self.height * self.width)) ** 0.5)

    def boxes(self, corners: Any) -> Any:
        return self._crop(corners, corners.canvas_size)

    def _crop(self, values: Any, size: tuple[int, ...], **how: Any) -> Any:
        from torchvision.transforms.v2 import functional

        return functional.resized_crop(values, *self, list(size), antialias=True, **how)


class Coloured(NamedTuple):
    """Factors of brightness, contrast and saturation, one after the other."""

    brightness: float
    contrast: float
    saturation: float

    def picture(self, picture: Tensor) -> Tensor:
        from torchvision.transforms.v2 import functional

        picture = functional.adjust_brightness(picture, self.brightness)
        picture = functional.adjust_contrast(picture, self.contrast)
        coloured: Tensor = functional.adjust_saturation(picture, self.saturation)
        return coloured

    def map(self, values: Tensor, kind: MapKind) -> Tensor:
        return values

    def boxes(self, corners: Any) -> Any:
        return corners


def changed(example: Example, changes: Sequence[Change], kinds: Mapping[str, TaskKind]) -> Example:
    """The example after all changes, one after the other."""
    picture, labels = example.picture, dict(example.labels)
    for change in changes:
        picture = change.picture(picture)
    size = tuple(picture.shape[-2:])
    for name, kind in kinds.items():
        if isinstance(kind, MapKind):
            for change in changes:
                labels[name] = change.map(labels[name], kind)
        else:
            labels[name] = _changed_boxes(labels[name], changes, size)
    return Example(picture, labels)


def _changed_boxes(boxes: Tensor, changes: Sequence[Change], size: tuple[int, ...]) -> Tensor:
    """Boxes [M, 5], class and corners; those that are hardly left in the picture are removed."""
    from torchvision.transforms.v2 import functional
    from torchvision.tv_tensors import BoundingBoxes

    corners: Any = BoundingBoxes(
        boxes[:, 1:].clone(), format="XYXY", canvas_size=size, clamping_mode=None
    )
    for change in changes:
        corners = change.boxes(corners)
    whole = torch.as_tensor(corners)
    inside = torch.as_tensor(functional.clamp_bounding_boxes(corners, clamping_mode="hard"))
    sides = inside[:, 2:] - inside[:, :2]
    is_left = (sides >= 1).all(1)
    is_left &= sides.prod(1) >= LEAST_LEFT * (whole[:, 2:] - whole[:, :2]).prod(1)
    is_left &= boxes[:, 0] != NO_BOX
    found = torch.cat([boxes[:, :1], inside.to(boxes)], 1)
    found[~is_left] = found.new_tensor([NO_BOX, 0, 0, 0, 0])
    return found
