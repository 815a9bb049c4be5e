"""Pictures of two digits for `digits`: drawing their glyphs, composing and rotating them."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from raymtl.data.draws import Draws

GLYPH = 8  # side of a digit on the canvas, pixels
OFFSET = 5  # of the right digit from the left one, down and right: they overlap by 3 pixels
SIDE = 16  # of the canvas


class Pairs(NamedTuple):
    """Pictures to be made: the glyphs on their left and right, indices [E, N] each, and their
    labels [E, N].
    """

    glyphs: tuple[np.ndarray, np.ndarray]
    labels: Mapping[str, np.ndarray]


def draw_digits(pools: np.ndarray, per_class: int, draws: Draws) -> Pairs:
    """Pictures of two digits each: `per_class` pictures for each left digit and each right one."""
    number = 10 * per_class
    left, right = (draws.choice(number, number) // per_class for _ in range(2))
    glyphs = _draw_glyphs(pools, left, draws), _draw_glyphs(pools, right, draws)
    return Pairs(glyphs, {"left": left, "right": right, "sum": left + right})


def draw_numbers(pools: np.ndarray, numbers: np.ndarray, per_class: int, draws: Draws) -> Pairs:
    """Pictures of the numbers [E, ways], one after the other."""
    shown = numbers.repeat(per_class, axis=1)
    target = np.arange(numbers.shape[1]).repeat(per_class)
    glyphs = _draw_glyphs(pools, shown // 10, draws), _draw_glyphs(pools, shown % 10, draws)
    return Pairs(glyphs, {"number": np.tile(target, (len(numbers), 1))})


def _draw_glyphs(pools: np.ndarray, digits: np.ndarray, draws: Draws) -> np.ndarray:
    """For each digit [E, N] the index of a glyph of that digit out of the pools [E, 10, M]."""
    chosen = draws.integers(pools.shape[2], digits.shape[1])
    glyphs: np.ndarray = pools[np.arange(len(pools))[:, None], digits, chosen]
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


def rotated(pictures: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Pictures [E, N, 1, H, W] uint8, those of an episode turned about their centre by its angle,
    [E] degrees to the left.
    """
    height, width = pictures.shape[-2:]
    radians = torch.deg2rad(angles)[:, None, None]
    cos, sin = torch.cos(radians).float(), torch.sin(radians).float()
    # Number by number, so that the grid of an episode does not depend on the others.
    x = _centres(width)[None, None, :]
    y = _centres(height)[None, :, None]
    grid = torch.stack([cos * x - sin * y, sin * x + cos * y], dim=-1)
    # A picture of N channels for each episode: its grid is computed once for all of them.
    channels = F.grid_sample(pictures.squeeze(2).float(), grid, align_corners=False)
    return channels.round().byte()[:, :, None]


def _centres(number: int) -> torch.Tensor:
    """The middles of this many pixels along a side that goes from -1 to 1."""
    return (2 * torch.arange(number, dtype=torch.float32) + 1) / number - 1
