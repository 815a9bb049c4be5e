"""Pictures of any kind of file, decoded and resized to one shape."""

import io
from collections.abc import Sequence
from typing import Literal

import numpy as np

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


def decoded(content: bytes, size: tuple[int, int], channels: int, resize: Resize) -> np.ndarray:
    """The picture as uint8 [channels, *size]; the first one where there are several.

    What is transparent is put on white; depths of 16 bits become 8. `stretch` changes the proportion of the sides,
    `crop` takes the middle. Raises OSError for what is no whole picture.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError
    from torchvision.transforms import v2

    try:
        with Image.open(io.BytesIO(content)) as opened:
            picture = ImageOps.exif_transpose(opened)
            picture.load()
            if picture.mode in ("I", "I;16", "I;16B", "F"):
                deep = np.asarray(picture, np.float64)
                picture = Image.fromarray((deep / (257 if deep.max() > 255 else 1)).clip(0, 255).astype(np.uint8))
            if picture.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in picture.info:
                picture = picture.convert("RGBA")
                white = Image.new("RGBA", picture.size, "white")
                picture = Image.alpha_composite(white, picture)
            picture = picture.convert("L" if channels == 1 else "RGB")
    except UnidentifiedImageError:
        raise OSError("no picture") from None
    except (ValueError, SyntaxError, Image.DecompressionBombError) as error:  # what Pillow raises for damaged files
        raise OSError(str(error)) from None
    tensor = v2.functional.pil_to_tensor(picture)
    if resize == "crop":
        height, width = tensor.shape[1:]
        scale = max(size[0] / height, size[1] / width)
        tensor = v2.functional.resize(tensor, [max(1, round(height * scale)), max(1, round(width * scale))])
        tensor = v2.functional.center_crop(tensor, list(size))
    else:
        tensor = v2.functional.resize(tensor, list(size))
    array: np.ndarray = tensor.numpy()
    return array
