"""Pictures of more than 8 bits: what is black and what is white in them, one answer for a whole
data set.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from raymtl.data.tables.decode import Deep, bits_in, deep_of, picture_of
from raymtl.data.tables.schema import Shades
from raymtl.storage.notes import Note
from raymtl.types import UserError

MOST_FITTED = 2000
"""Pictures that the range is found in, evenly spaced through the rows for training."""
DEPTHS = (8, 10, 12, 14, 16, 24, 32)  # bits that cameras and scanners have
SHALLOW = (".jpg", ".jpeg", ".gif", ".webp", ".bmp")
"""Endings of files that have 8 bits at most, and need not be read to know it."""
LEAST_COARSE = 2**14 - 1
"""The range, at least, of which the upper 8 of 16 bits keep enough: 64 shades."""
KEY = "data.value_range"


def in_shades(deep: Deep, shades: Shades | None) -> tuple[np.ndarray, bool]:
    """The values in 8 bits, [H, W] or [H, W, 3] uint8, and whether some were beyond black or white
    and are cut off.

    What is no number is black. Raises OSError where the values are of another kind than those for
    training.
    """
    if shades is None:
        raise OSError("it has more than 8 bits, the pictures for training have not")
    if shades.fractions is not None and shades.fractions != deep.fractions:
        kinds = ("whole numbers", "fractions")
        raise OSError(
            f"its values are {kinds[deep.fractions]}, in the pictures for training "
            f"{kinds[shades.fractions]}"
        )
    if deep.coarse and shades.white - shades.black < LEAST_COARSE:
        raise OSError(
            "of colours in a TIFF of 16 bits the upper 8 are read, too few here: save it as PNG"
        )
    values = deep.values.astype(np.float64)
    beyond = not bool(((values >= shades.black) & (values <= shades.white)).all())
    shaded = (np.nan_to_num(values, nan=shades.black) - shades.black) / (
        shades.white - shades.black
    )
    shaded = shaded.clip(0, 1)
    if deep.alpha is not None:  # on white
        if shaded.ndim == 3:
            alpha = deep.alpha
        else:
            alpha = deep.alpha[..., 0]
        shaded = alpha * shaded + 1 - alpha
    pixels: np.ndarray = np.rint(255 * shaded).astype(np.uint8)
    return pixels, beyond


class Unread(NamedTuple):
    """A picture by its name; `read` gives its file, or raises OSError."""

    name: str
    read: Callable[[], bytes]


class _Ends(NamedTuple):
    name: str
    fractions: bool
    least: float
    most: float


def fit_shades(
    pictures: Sequence[Unread], given: tuple[float, float] | None
) -> tuple[Shades | None, tuple[Note, ...]]:
    """What is black and white in the pictures for training, and what is to be said of it; None
    where all have 8 bits.

    Whole numbers end at the next power of two that cameras have, 4095 of 12 bits for example;
    fractions go from 0 to 1. Raises UserError for fractions of another range and for pictures of
    both kinds, where no range is `given`.
    """
    if given is not None:
        return Shades(black=given[0], white=given[1]), ()
    chosen = [
        pictures[i]
        for i in np.unique(np.linspace(0, len(pictures) - 1, MOST_FITTED).astype(int)).tolist()
    ]
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as threads:
        seen = [ends for ends in threads.map(_ends, chosen) if ends is not None]
    if not seen:
        return None, ()
    first = seen[0]
    other = next((ends for ends in seen if ends.fractions != first.fractions), None)
    if other is not None:
        raise UserError(
            f"{KEY}: expected pictures of one kind of numbers, got {_kind(first)} in {first.name} "
            f"and {_kind(other)} in {other.name}. Convert one of them, or say [black, white] of "
            "both."
        )
    return _shades_of(seen, len(chosen) - len(seen))


def _shades_of(seen: Sequence[_Ends], shallow: int) -> tuple[Shades, tuple[Note, ...]]:
    """What is black and white in pictures of one kind of numbers, beside this many of 8 bits."""
    least, most = min(ends.least for ends in seen), max(ends.most for ends in seen)
    if seen[0].fractions:
        shades = _of_fractions(seen, least, most)
    else:
        shades = _of_whole(least, most)
    text = (
        f"{len(seen)} of {len(seen) + shallow} have more than 8 bits, with values from {least:g} "
        f"to {most:g}: {shades.black:g} is black and {shades.white:g} white in all of them"
    )
    if shallow:
        text += f", 255 in the {shallow} others"
    return shades, (Note(place="pictures", text=text, key=KEY),)


def _kind(ends: _Ends) -> str:
    if ends.fractions:
        return "fractions"
    return "whole numbers"


def _ends(picture: Unread) -> _Ends | None:
    """The least and the largest value in a picture of more than 8 bits; those that cannot be read
    are told later.
    """
    if picture.name.lower().endswith(SHALLOW):
        return None
    try:
        content = picture.read()
        if bits_in(content) == 8:
            return None
        deep = deep_of(content, picture_of(content))
    except OSError:
        return None
    values = deep.values[np.isfinite(deep.values)]
    if not values.size:
        return None
    return _Ends(picture.name, deep.fractions, float(values.min()), float(values.max()))


def _of_fractions(seen: Sequence[_Ends], least: float, most: float) -> Shades:
    if least < 0 or most > 1:
        odd = next(ends for ends in seen if ends.least < 0 or ends.most > 1)
        raise UserError(
            f"{KEY}: {odd.name}: expected fractions from 0 to 1, got values from {odd.least:g} to "
            f"{odd.most:g} ({least:g} to {most:g} in all pictures looked at). Say {KEY}: [black, "
            "white]."
        )
    return Shades(black=0, white=1, fractions=True)


def _of_whole(least: float, most: float) -> Shades:
    if least < 0:
        return Shades(black=least, white=max(most, least + 1), fractions=False)
    white = next(2.0**bits - 1 for bits in DEPTHS if most < 2.0**bits or bits == DEPTHS[-1])
    return Shades(black=0, white=white, fractions=False)
