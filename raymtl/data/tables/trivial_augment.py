"""TrivialAugment (Müller, Hutter, 2021, arXiv:2103.10158), the wide space: each picture goes
through one of 14 operations at one of 31 strengths, all with equal odds.

Deviation: pictures move by up to a seventh of their side, which is the published 32 pixels of 224.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

from raymtl.data.draws import Draws
from raymtl.data.tables.changes import Change
from raymtl.tasks.maps import MapKind

NUM_STRENGTHS = 31
FARTHEST = 32 / 224
"""The share of a side by which a picture moves at most."""


class Warp(NamedTuple):
    """A turn, shear or move; what was outside of the picture becomes black."""

    degrees: float = 0.0
    shear: tuple[float, float] = (0.0, 0.0)
    """The share of the height by which the top moves across, and of the width alike."""
    move: tuple[float, float] = (0.0, 0.0)
    """Shares of width and height."""

    def picture(self, picture: Tensor) -> Tensor:
        from torchvision.transforms.v2 import InterpolationMode

        warped: Tensor = self._warp(picture, interpolation=InterpolationMode.BILINEAR)
        return warped

    def map(self, values: Tensor, kind: MapKind) -> Tensor:
        size = values.shape[-2:]
        flat = values.reshape(-1, *size).float()
        warped = self._warp(flat, fill=float(kind.missing_value))
        same: Tensor = warped.reshape(values.shape).to(values.dtype)
        return same

    def boxes(self, corners: Any) -> Any:
        return self._warp(corners)

    def _warp(self, values: Any, **how: Any) -> Any:
        from torchvision.transforms.v2 import functional

        height, width = functional.get_size(values)
        return functional.affine(
            values,
            angle=self.degrees,
            translate=[round(self.move[0] * width), round(self.move[1] * height)],
            scale=1.0,
            shear=[math.degrees(math.atan(share)) for share in self.shear],
            **how,
        )


class Recoloured(NamedTuple):
    """Another colour at every pixel, in the same place."""

    apply: Callable[[Tensor], Tensor]

    def picture(self, picture: Tensor) -> Tensor:
        return self.apply(picture)

    def map(self, values: Tensor, kind: MapKind) -> Tensor:
        return values

    def boxes(self, corners: Any) -> Any:
        return corners


def draw_operations(number: int, draws: Draws) -> list[Change]:
    """An operation for each of `number` pictures of every episode, an episode after another."""
    chosen = draws.integers(len(OPERATIONS), number).reshape(-1)
    strengths = draws.integers(NUM_STRENGTHS, number).reshape(-1) / (NUM_STRENGTHS - 1)
    signs = 1 - 2 * draws.integers(2, number).reshape(-1)
    operations = list(OPERATIONS.values())
    rows = zip(chosen.tolist(), strengths.tolist(), signs.tolist(), strict=True)
    return [operations[one](strength, sign) for one, strength, sign in rows]


def _warps(strength: float, sign: int) -> Mapping[str, Change]:
    """The operations that move what is in the picture, by their names in the paper."""
    share = sign * strength
    return {
        "ShearX": Warp(shear=(0.99 * share, 0.0)),
        "ShearY": Warp(shear=(0.0, 0.99 * share)),
        "TranslateX": Warp(move=(FARTHEST * share, 0.0)),
        "TranslateY": Warp(move=(0.0, FARTHEST * share)),
        "Rotate": Warp(degrees=135.0 * share),
    }


def _warp(name: str, strength: float, sign: int) -> Change:
    return _warps(strength, sign)[name]


def _factor(name: str, strength: float, sign: int) -> Change:
    """An operation whose factor is 1 for the picture as it is."""
    return _coloured(name, 1.0 + 0.99 * sign * strength)


def _posterize(strength: float, sign: int) -> Change:
    return _coloured("posterize", round(8 - 6 * strength))


def _solarize(strength: float, sign: int) -> Change:
    return _coloured("solarize", 255.0 * (1 - strength))


def _plain(name: str, strength: float, sign: int) -> Change:
    """An operation without a strength."""
    return _coloured(name)


def _identity(strength: float, sign: int) -> Change:
    return Recoloured(lambda picture: picture)


def _coloured(name: str, *values: float) -> Change:
    def apply(picture: Tensor) -> Tensor:
        from torchvision.transforms.v2 import functional

        coloured: Tensor = getattr(functional, name)(picture, *values)
        return coloured

    return Recoloured(apply)


OPERATIONS: Mapping[str, Callable[[float, int], Change]] = {
    "Identity": _identity,
    **{name: partial(_warp, name) for name in _warps(0.0, 1)},
    "Brightness": partial(_factor, "adjust_brightness"),
    "Color": partial(_factor, "adjust_saturation"),
    "Contrast": partial(_factor, "adjust_contrast"),
    "Sharpness": partial(_factor, "adjust_sharpness"),
    "Posterize": _posterize,
    "Solarize": _solarize,
    "AutoContrast": partial(_plain, "autocontrast"),
    "Equalize": partial(_plain, "equalize"),
}
"""Name in the paper -> strength from 0 to 1, and sign -> the operation."""
