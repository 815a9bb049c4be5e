"""Maps as colours, for people to look at."""

import numpy as np

NEAREST, FARTHEST = np.array([255, 238, 120]), np.array([40, 20, 90])
"""Colours of the least and of the largest depth."""
BLACK = 0
"""What stands where a map has no value."""


def class_colours(numbers: np.ndarray) -> np.ndarray:
    """Numbers of classes [H, W], negative where there is none -> [H, W, 3] uint8, a colour each."""
    number = np.maximum(numbers, 0).astype(np.int64)
    # Turned by the golden angle, so that no two of the first many classes are alike.
    turn = 2 * np.pi * (0.6 + 0.381966 * number)[..., None] + np.array([0, 2, 4]) * np.pi / 3
    bright = 150 + 45 * (number % 3)[..., None]
    return _black_outside(numbers >= 0, bright * (0.62 + 0.38 * np.cos(turn)))


def depth_colours(depths: np.ndarray) -> np.ndarray:
    """Depths [H, W], 0 or nan where there is none -> [H, W, 3] uint8, near ones bright."""
    valid = depths > 0
    known = depths[valid]
    if known.size:
        low, high = known.min(), known.max()
    else:
        low, high = 0.0, 1.0
    share = np.where(valid, (depths - low) / max(float(high - low), 1e-12), 0)[..., None]
    return _black_outside(valid, NEAREST + share * (FARTHEST - NEAREST))


def direction_colours(vectors: np.ndarray) -> np.ndarray:
    """Vectors [3, H, W], 0 or nan where there is none -> [H, W, 3] uint8, x, y and z as red, green
    and blue.
    """
    values = np.moveaxis(np.nan_to_num(vectors.astype(np.float32)), 0, -1)
    length = np.linalg.norm(values, axis=-1, keepdims=True)
    return _black_outside(length[..., 0] > 0, (values / np.maximum(length, 1e-12) + 1) * 127.5)


def _black_outside(valid: np.ndarray, colours: np.ndarray) -> np.ndarray:
    pixels: np.ndarray = np.where(valid[..., None], colours, BLACK).clip(0, 255).astype(np.uint8)
    return pixels
