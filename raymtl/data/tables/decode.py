"""Files of pictures as Pillow opens them, and the numbers of those with more than 8 bits a
value.
"""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

PNG = b"\x89PNG\r\n\x1a\n"
BIT_DEPTH = 24  # the place of it in a PNG
BITS_PER_SAMPLE = 258  # a tag of TIFF


def picture_of(content: bytes) -> "Image":
    """The picture, upright; the first one where there are several. Raises OSError for what is no
    whole picture.
    """
    return opened(content)[0]


def opened(content: bytes) -> tuple["Image", int]:
    """The same, and how many bits a value has in the file."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(content)) as lazy:
            bits = bits_of(content, lazy)
            picture = ImageOps.exif_transpose(lazy)
            picture.load()
    except UnidentifiedImageError:
        raise OSError("no picture") from None
    except (
        Exception
    ) as error:  # Pillow raises many kinds for damaged files, and its own for oversized ones
        raise OSError(str(error) or type(error).__name__) from None
    return picture, bits


def bits_of(content: bytes, picture: "Image") -> int:
    """How many bits a value has in the file of a picture, which was opened and not yet changed: 8
    at least.
    """
    if picture.mode == "F" or picture.mode.startswith("I"):
        return 16
    if content.startswith(PNG) and len(content) > BIT_DEPTH:
        return max(8, content[BIT_DEPTH])
    bits: Sequence[int] = getattr(picture, "tag_v2", {}).get(BITS_PER_SAMPLE, ())
    return max([8, *bits])


def bits_in(content: bytes) -> int:
    """The same of a file alone. Raises OSError for what is no picture."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as lazy:
            return bits_of(content, lazy)
    except Exception as error:
        raise OSError(str(error) or type(error).__name__) from None


class Deep(NamedTuple):
    """The numbers of a picture of more than 8 bits."""

    values: np.ndarray
    """[H, W] or [H, W, 3]"""
    alpha: np.ndarray | None
    """[H, W, 1], from 0, which is transparent, to 1."""
    fractions: bool
    """Whether they are floats."""
    coarse: bool = False
    """Whether nothing but the upper 8 of 16 bits could be read."""


def deep_of(content: bytes, picture: "Image") -> Deep:
    """The numbers of a picture of more than 8 bits, given its file and as it was opened.

    Raises OSError for a damaged file.
    """
    if picture.mode == "F" or picture.mode.startswith("I"):
        return Deep(np.asarray(picture), None, picture.mode == "F")
    if content.startswith(PNG):
        return _of_png(content)
    # Pillow takes the upper 8 bits, of which 255 stands for 65535.
    return Deep(
        np.asarray(picture.convert("RGB"), np.uint16) * np.uint16(257), None, False, coarse=True
    )


def _of_png(content: bytes) -> Deep:
    """Colours of 16 bits, of which Pillow would keep 8."""
    import torch
    from torchvision.io import ImageReadMode, decode_png

    try:
        read = decode_png(
            torch.frombuffer(bytearray(content), dtype=torch.uint8),
            ImageReadMode.UNCHANGED,
            apply_exif_orientation=True,
        )
    except RuntimeError as error:
        raise OSError(str(error)) from None
    values = np.moveaxis(read.numpy(), 0, -1)
    if values.shape[-1] in (2, 4):
        alpha = values[..., -1:] / np.float64(65535)
        return Deep(_without_axis(values[..., :-1]), alpha, False)
    return Deep(_without_axis(values), None, False)


def _without_axis(values: np.ndarray) -> np.ndarray:
    if values.shape[-1] == 1:
        return values[..., 0]
    return values
