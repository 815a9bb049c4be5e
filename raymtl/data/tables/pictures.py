"""Pictures of any kind of file, decoded and resized to one shape."""

import io
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from torch import Tensor

from raymtl.data.tables.decode import deep_of, opened
from raymtl.data.tables.schema import Shades
from raymtl.data.tables.shades import in_shades

if TYPE_CHECKING:
    from PIL.Image import Image

Resize = Literal["stretch", "crop"]
GREY = ("1", "L", "LA", "La", "I", "F")
"""Pillow's modes of one number a pixel."""


def channels_of(contents: Sequence[bytes]) -> int:
    """1 where all these pictures are grey, else 3. Those that cannot be opened have no say."""
    from PIL import Image

    for content in contents:
        try:
            with Image.open(io.BytesIO(content)) as picture:
                if picture.mode not in ("1", "L", "LA", "F") and not picture.mode.startswith("I"):
                    return 3
        except (
            Exception
        ):  # Pillow raises many kinds for damaged files, and its own for oversized ones
            continue
    return 1


def is_picture(content: bytes) -> bool:
    """Whether it begins as a picture does, or an array of NumPy."""
    from PIL import Image

    if content.startswith(b"\x93NUMPY"):
        return True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", Image.DecompressionBombWarning
            )  # its size is judged where it is read
            with Image.open(io.BytesIO(content)):
                return True
    except Image.DecompressionBombError:
        return True
    except (OSError, ValueError, SyntaxError):
        return False


def fitted_into(
    tensor: Tensor, size: tuple[int, int], resize: Resize, *, nearest: bool = False
) -> Tensor:
    """Pictures or maps [C, H, W] -> [C, *size]; maps by the nearest pixel, which makes no value of
    two.

    `stretch` changes the proportion of the sides, `crop` takes the middle.
    """
    from torchvision.transforms import v2

    if nearest:
        how = v2.InterpolationMode.NEAREST_EXACT
    else:
        how = v2.InterpolationMode.BILINEAR
    if resize == "crop":
        height, width = tensor.shape[1:]
        scale = max(size[0] / height, size[1] / width)
        scaled = [max(1, round(height * scale)), max(1, round(width * scale))]
        whole: Tensor = v2.functional.center_crop(
            v2.functional.resize(tensor, scaled, how), list(size)
        )
        return whole
    stretched: Tensor = v2.functional.resize(tensor, list(size), how)
    return stretched


def decoded(
    content: bytes,
    size: tuple[int, int],
    channels: int,
    resize: Resize,
    shades: Shades | None = None,
) -> np.ndarray:
    """The picture as uint8 [channels, *size]. Raises OSError for what is no whole picture."""
    return measured(content, size, channels, resize, shades).pixels


class Measured(NamedTuple):
    """The picture as uint8 [channels, *size], and the height and width that it had."""

    pixels: np.ndarray
    shape: tuple[int, int]
    beyond: bool
    """Whether it has values darker than black or lighter than white, which are cut off."""
    faded: bool = False
    """Whether it has colours that are seen as greys."""


def measured(
    content: bytes,
    size: tuple[int, int],
    channels: int,
    resize: Resize,
    shades: Shades | None = None,
) -> Measured:
    """The picture brought to one shape. What is transparent is put on white.

    `shades` says what is black and white in pictures of more than 8 bits, which become 8. Raises
    OSError for what is no whole picture, and without `shades` for one of more than 8 bits.
    """
    from PIL import Image
    from torchvision.transforms import v2

    picture, bits = opened(content)
    beyond = False
    if bits > 8:
        shaded, beyond = in_shades(deep_of(content, picture), shades)
        picture = Image.fromarray(shaded)
    try:
        if picture.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in picture.info:
            picture = picture.convert("RGBA")
            white = Image.new("RGBA", picture.size, "white")
            picture = Image.alpha_composite(white, picture)
        faded = channels == 1 and picture.mode not in GREY and _has_colours(picture.convert("RGB"))
        picture = picture.convert("L" if channels == 1 else "RGB")
    except ValueError as error:
        raise OSError(str(error)) from None
    array: np.ndarray = fitted_into(v2.functional.pil_to_tensor(picture), size, resize).numpy()
    return Measured(array, (picture.height, picture.width), beyond, faded)


def _has_colours(picture: "Image") -> bool:
    """Whether some pixel of an RGB picture is no grey."""
    pixels = np.asarray(picture)
    return not bool((pixels == pixels[..., :1]).all())
