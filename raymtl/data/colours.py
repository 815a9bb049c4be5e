"""Maps as colours, for people to look at."""

from collections.abc import Callable, Mapping

import numpy as np

NEAR, FAR = (
    np.array([255, 238, 120]),
    np.array([40, 20, 90]),
)  # colours of the least and the largest depth
BLACK = 0  # what is missing


def of_classes(target: np.ndarray) -> np.ndarray:
    """Numbers of classes [H, W], negative where there is none -> [H, W, 3] uint8, a colour each."""
    number = np.maximum(target, 0).astype(np.int64)
    # Turned by the golden angle, so that no two of the first many classes are alike.
    turn = 2 * np.pi * (0.6 + 0.381966 * number)[..., None] + np.array([0, 2, 4]) * np.pi / 3
    bright = 150 + 45 * (number % 3)[..., None]
    return _where(target >= 0, bright * (0.62 + 0.38 * np.cos(turn)))


def of_depth(target: np.ndarray) -> np.ndarray:
    """Depths [H, W], 0 or nan where there is none -> [H, W, 3] uint8, near ones bright."""
    there = target > 0
    known = target[there]
    low, high = (known.min(), known.max()) if known.size else (0.0, 1.0)
    share = np.where(there, (target - low) / max(float(high - low), 1e-12), 0)[..., None]
    return _where(there, NEAR + share * (FAR - NEAR))


def of_normals(target: np.ndarray) -> np.ndarray:
    """Vectors [3, H, W], 0 or nan where there is none -> [H, W, 3] uint8, x, y and z as red, green
    and blue.
    """
    vectors = np.moveaxis(np.nan_to_num(target.astype(np.float32)), 0, -1)
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return _where(length[..., 0] > 0, (vectors / np.maximum(length, 1e-12) + 1) * 127.5)


def _where(there: np.ndarray, colours: np.ndarray) -> np.ndarray:
    painted: np.ndarray = np.where(there[..., None], colours, BLACK).clip(0, 255).astype(np.uint8)
    return painted


PAINT: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "segmentation": of_classes,
    "depth": of_depth,
    "normals": of_normals,
}
"""Kind of task -> what makes a picture of its target."""
