"""A white sheet that images, rectangles and short texts are put on; and what fits into a cell."""

import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from raymtl.types import UserError

LETTERS = 22
"""Of a cell of text; more are cut off."""
LETTER_WIDTH, LINE_HEIGHT = 7, 15
"""Pixels."""


class Canvas:
    """A sheet of so many pixels."""

    def __init__(self, width: int, height: int) -> None:
        self._sheet = Image.new("RGB", (width, height), "white")
        self._pen = ImageDraw.Draw(self._sheet)
        self._font = ImageFont.load_default(12)

    def image(self, left: int, top: int, pixels: np.ndarray, side: int) -> float:
        """Puts pixels [H, W, 3] uint8, the longer side about `side` long; returns by how much they
        were enlarged.
        """
        shown = Image.fromarray(pixels)
        if max(shown.size) > side:
            shown.thumbnail((side, side))
        times = max(1, side // max(shown.size))
        size = (shown.width * times, shown.height * times)
        self._sheet.paste(shown.resize(size, Image.Resampling.NEAREST), (left, top))
        return size[0] / int(pixels.shape[1])

    def rectangle(
        self, left: float, top: float, right: float, bottom: float, colour: Sequence[int]
    ) -> None:
        """Draws the outline."""
        red, green, blue = colour
        self._pen.rectangle((left, top, right, bottom), outline=(red, green, blue))

    def text(self, left: int, top: int, text: str, ink: str = "black") -> None:
        """Writes a line in letters that Pillow's own font has."""
        plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode() or "?"
        self._pen.text((left, top), plain[:LETTERS], ink, self._font)

    def save(self, path: Path) -> None:
        """Raises UserError where no picture can be written."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._sheet.save(path)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{path}: expected where a picture can be written, such as batch.png ({error})."
            ) from None


def text_width(texts: Sequence[str]) -> int:
    """Of the longest as it is written in a cell, in pixels; 0 of none."""
    return LETTER_WIDTH * max((len(text[:LETTERS]) for text in texts), default=0)
