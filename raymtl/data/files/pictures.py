"""Pictures of any kind of file, decoded and resized to one shape."""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

Resize = Literal["stretch", "crop"]


def channels_of(contents: Sequence[bytes]) -> int:
    """1 where all these pictures are grey, else 3. Those that cannot be opened have no say."""
    from PIL import Image

    for content in contents:
        try:
            with Image.open(io.BytesIO(content)) as picture:
                if picture.mode not in ("1", "L", "LA", "I", "I;16", "I;16B", "F"):
                    return 3
        except (OSError, ValueError, SyntaxError):
            continue
    return 1


def picture_of(content: bytes) -> "Image":
    """The picture, upright; the first one where there are several. Raises OSError for what is no whole picture."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(content)) as opened:
            picture = ImageOps.exif_transpose(opened)
            picture.load()
    except UnidentifiedImageError:
        raise OSError("no picture") from None
    except (ValueError, SyntaxError, Image.DecompressionBombError) as error:  # what Pillow raises for damaged files
        raise OSError(str(error)) from None
    return picture


def fitted_into(tensor: Tensor, size: tuple[int, int], resize: Resize, *, nearest: bool = False) -> Tensor:
    """Pictures or maps [C, H, W] -> [C, *size]; maps by the nearest pixel, which makes no value of two.

    `stretch` changes the proportion of the sides, `crop` takes the middle.
    """
    from torchvision.transforms import v2

    how = v2.InterpolationMode.NEAREST_EXACT if nearest else v2.InterpolationMode.BILINEAR
    if resize == "crop":
        height, width = tensor.shape[1:]
        scale = max(size[0] / height, size[1] / width)
        scaled = [max(1, round(height * scale)), max(1, round(width * scale))]
        whole: Tensor = v2.functional.center_crop(v2.functional.resize(tensor, scaled, how), list(size))
        return whole
    stretched: Tensor = v2.functional.resize(tensor, list(size), how)
    return stretched


def decoded(content: bytes, size: tuple[int, int], channels: int, resize: Resize) -> np.ndarray:
    """The picture as uint8 [channels, *size]. Raises OSError for what is no whole picture."""
    return measured(content, size, channels, resize)[0]


def measured(
    content: bytes, size: tuple[int, int], channels: int, resize: Resize
) -> tuple[np.ndarray, tuple[int, int]]:
    """The picture as uint8 [channels, *size], and the height and width that it had.

    What is transparent is put on white; depths of 16 bits become 8. Raises OSError for what is no whole picture.
    """
    from PIL import Image
    from torchvision.transforms import v2

    picture = picture_of(content)
    try:
        if picture.mode in ("I", "I;16", "I;16B", "F"):
            deep = np.asarray(picture, np.float64)
            picture = Image.fromarray((deep / (257 if deep.max() > 255 else 1)).clip(0, 255).astype(np.uint8))
        if picture.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in picture.info:
            picture = picture.convert("RGBA")
            white = Image.new("RGBA", picture.size, "white")
            picture = Image.alpha_composite(white, picture)
        picture = picture.convert("L" if channels == 1 else "RGB")
    except ValueError as error:
        raise OSError(str(error)) from None
    array: np.ndarray = fitted_into(v2.functional.pil_to_tensor(picture), size, resize).numpy()
    return array, (picture.height, picture.width)
