"""Maps of classes in files: the numbers or colours that stand for classes, and their encoding."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from raymtl.tasks.maps import (
    FittedMaps,
    MapFiles,
    MapSettings,
    flat,
    is_colour,
    packed,
    whole_numbers,
)
from raymtl.types import UserError

USUAL_IGNORED = 255
"""What most maps of classes have where there is no label; a class where only one other value is
there.
"""
LEAST_GREY = 100
"""Values below it are numbers of classes; larger ones could be greys that stand for them."""
LISTED = 12
"""Values that an error lists."""


class _Seen(NamedTuple):
    """The values in the maps for training, and whether these are colours."""

    values: list[int]
    colours: bool

    def name(self, value: int) -> str:
        if self.colours:
            return f"#{value:06x}"
        return str(value)


def fit_classes(task: str, given: MapSettings, maps: MapFiles) -> dict[str, Any]:
    """Names of the classes, the numbers that stand for them, and the numbers that say nothing.

    Raises UserError, which begins with the key, where these contradict each other.
    """
    key = f"data.tasks.{task}"
    names = [str(value) for value in given.classes or ()]
    if len(set(names)) < len(names):
        raise UserError(f"{key}.classes: expected every class once, got {names}.")
    seen = _seen_in(maps)
    values = given.values
    if values is None and names:
        values = _values_of_named(key, given, names, seen, maps)
    ignored = _ignored(given, values, seen)
    if values is None:
        values = tuple(value for value in seen.values if value not in ignored)
    if not names:
        names = [seen.name(value) for value in values]
    if len(names) != len(values) or len(set(values)) < len(values) or set(values) & set(ignored):
        raise UserError(
            f"{key}.values: expected a number of its own for each of {len(names)} classes, none of "
            f"them ignored, got {list(values)} (ignored: {list(ignored)})."
        )
    if len(values) < 2:
        raise UserError(
            f"{key}: {maps.first}: expected maps of two classes at least, got {list(values)} in "
            f"{len(maps)} maps (ignored: {list(ignored)}). Correct the maps, or say "
            f"data.tasks.{task}.classes."
        )
    return {
        "classes": tuple(names),
        "values": values,
        "ignored": ignored,
        "colours": seen.colours,
    }


def _seen_in(maps: MapFiles) -> _Seen:
    """Greys count as colours where any map has colours."""
    each = maps.read(_values_in)
    colours = any(one.colours for one in each)
    values = set()
    for one in each:
        if colours and not one.colours:
            values |= {grey * 0x010101 for grey in one.values}
        else:
            values |= set(one.values)
    return _Seen(sorted(value for value in values if value >= 0), colours)


def _values_in(map_name: str, values: np.ndarray) -> _Seen:
    if is_colour(values):
        return _Seen(np.unique(packed(values)).tolist(), True)
    if values.dtype == np.uint8 or values.dtype == np.uint16:
        greys = np.flatnonzero(np.bincount(flat(values, map_name).ravel())).tolist()
    else:
        greys = np.unique(whole_numbers(values, map_name)).tolist()
    return _Seen(greys, False)


def _values_of_named(
    key: str, given: MapSettings, names: Sequence[str], seen: _Seen, maps: MapFiles
) -> tuple[int, ...]:
    """What stands for named classes: the names themselves, where these are whole numbers; else 0,
    1, 2 ..., or the values seen, such as 0 and 255, where there are as many.
    """
    if seen.colours:
        raise UserError(
            f"{key}.values: {maps.first}: expected the colours that stand for {names}, such as "
            "0xFF0000, in their order, got none, and in the maps "
            f"{[seen.name(value) for value in seen.values[:LISTED]]}. Say them."
        )
    if all(isinstance(name, int) and not isinstance(name, bool) for name in given.classes or ()):
        return tuple(int(name) for name in names)
    in_order = set(range(len(names)))
    others = set(seen.values)
    few_in_order = len(in_order & (others - {USUAL_IGNORED})) < 2
    if few_in_order and not others <= in_order and len(others) == len(names):
        return tuple(seen.values)
    return tuple(range(len(names)))


def _ignored(given: MapSettings, values: tuple[int, ...] | None, seen: _Seen) -> tuple[int, ...]:
    """The numbers that say nothing: those given, or 255 where it is no class."""
    if isinstance(given.ignore, int):
        return (given.ignore,)
    if given.ignore is not None:
        return tuple(given.ignore)
    if seen.colours or USUAL_IGNORED not in seen.values or USUAL_IGNORED in (values or ()):
        return ()
    others = [value for value in seen.values if value != USUAL_IGNORED]
    several = len(others) > 1 and others[-1] < max(LEAST_GREY, 2 * len(others))
    if values is not None or several:
        return (USUAL_IGNORED,)
    return ()


def encode_classes(task: str, fitted: FittedMaps, values: np.ndarray, map_name: str) -> np.ndarray:
    """The number of the class of every pixel, [H, W] int16, -1 where it says nothing.

    Raises UserError for a value that is neither a class nor ignored.
    """
    numbers = whole_numbers(values, map_name, fitted.colours)
    order = np.argsort(fitted.values)
    known = np.array(fitted.values)[order]
    place = np.searchsorted(known, numbers).clip(max=len(known) - 1)
    ignored = (numbers < 0) | np.isin(numbers, fitted.ignored)
    odd = numbers[(known[place] != numbers) & ~ignored]
    if odd.size:
        written = _Seen(sorted(fitted.values), fitted.colours)
        listed = [written.name(value) for value in written.values[:LISTED]]
        if len(written.values) > LISTED:
            more = " ..."
        else:
            more = ""
        raise UserError(
            f"{map_name}: expected a class of task '{task}' in every pixel, one of "
            f"{', '.join(listed)}{more}, got {written.name(int(odd[0]))} in {odd.size} pixels. "
            f"Correct the map, or name it in data.tasks.{task}.values or .ignore."
        )
    return np.where(ignored, -1, order[place]).astype(np.int16)
