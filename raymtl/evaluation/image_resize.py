"""Converts maps and boxes from the pixels of a resized image to those of the original."""

from typing import NamedTuple

import numpy as np


class ImageResize(NamedTuple):
    """How the images of a source were brought to one size: stretched, or cropped in the middle."""

    size: tuple[int, int]
    crop: bool


def map_in_original(
    values: np.ndarray, shape: tuple[int, int], resize: ImageResize, nothing: int
) -> np.ndarray:
    """A map [..., *resize.size] in the pixels of the original image of this shape.

    Each pixel gets the value of the nearest one. Pixels that a crop removed get `nothing`.
    """
    indices, inside = [], []
    for axis, (original, resized) in enumerate(zip(shape, resize.size, strict=True)):
        scaled = _scaled(shape, resize)[axis]
        cropped = round((scaled - resized) / 2)
        centres = (np.arange(original) + 0.5) * scaled / original
        position = np.floor(centres).astype(np.int64) - cropped
        inside.append((position >= 0) & (position < resized))
        indices.append(position.clip(0, resized - 1))
    nearest = values[..., indices[0][:, None], indices[1]]
    is_inside = inside[0][:, None] & inside[1]
    full: np.ndarray = np.where(is_inside, nearest, np.array(nothing, nearest.dtype))
    return full


def box_in_original(corners: np.ndarray, shape: tuple[int, int], resize: ImageResize) -> np.ndarray:
    """The corners x1, y1, x2, y2 of a box in the original image of this shape."""
    scaled = _scaled(shape, resize)
    down, across = scaled[0] / shape[0], scaled[1] / shape[1]
    top = (scaled[0] - resize.size[0]) / 2
    left = (scaled[1] - resize.size[1]) / 2
    original = (corners + np.array([left, top, left, top])) / [across, down, across, down]
    clipped: np.ndarray = original.clip(0, [shape[1], shape[0]] * 2)
    return clipped


def _scaled(shape: tuple[int, int], resize: ImageResize) -> tuple[int, int]:
    """The size that an image of this shape was scaled to, before its middle was taken."""
    if not resize.crop:
        return resize.size
    scale = max(resize.size[0] / shape[0], resize.size[1] / shape[1])
    return max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))
