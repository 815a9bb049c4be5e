"""Boxes of pictures as people store them: Pascal VOC's XML, read safely, and what must hold of
every box.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np

IGNORED = -2
"""Class of a difficult object in a target of boxes: -2 - c where it is of class c. -1 stands for no
object.
"""


class Seen(NamedTuple):
    """An object in a picture."""

    label: str
    box: tuple[float, float, float, float]
    """x1, y1, x2, y2 in pixels of the picture as it is stored."""
    difficult: bool = False


class Annotation(NamedTuple):
    """What one file says of one picture."""

    picture: str | None
    """Its file's name, where it is given."""
    size: tuple[int, int] | None
    """Height and width, where they are given."""
    objects: tuple[Seen, ...]


class _WithoutDoctype(ElementTree.TreeBuilder):
    """Entities are declared in a DOCTYPE alone, so that none can be expanded."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ValueError("a DOCTYPE, which annotations have no use for")


def read_xml(content: bytes) -> Annotation:
    """An annotation as Pascal VOC has them (Everingham et al., 2010,
    doi:10.1007/s11263-009-0275-4).

    Corners are taken as they are written; those of VOC itself count pixels from 1, which is half a
    pixel off. Raises ValueError, with the reason, for what is no annotation; a DOCTYPE is refused.
    """
    try:
        root = ElementTree.fromstring(content, ElementTree.XMLParser(target=_WithoutDoctype()))
    except ElementTree.ParseError as error:
        raise ValueError(f"no XML: {error}") from None
    if root.tag != "annotation":
        raise ValueError(f"<{root.tag}> in place of <annotation>")
    sides = [root.findtext(f"size/{key}") for key in ("height", "width")]
    size = tuple(int(_number(text, "size")) for text in sides if text)
    objects = []
    for number, element in enumerate(root.iter("object")):
        label = (element.findtext("name") or "").strip()
        if not label:
            raise ValueError(f"object {number} has no name")
        box = element.find("bndbox")
        if box is None:
            raise ValueError(f"object {number}, '{label}', has no bndbox")
        corners = [_number(box.findtext(key), key) for key in ("xmin", "ymin", "xmax", "ymax")]
        difficult = (element.findtext("difficult") or "0").strip() in ("1", "true")
        objects.append(Seen(label, (corners[0], corners[1], corners[2], corners[3]), difficult))
    # Some tools write 0 for what they do not know.
    if len(size) == 2 and min(size) > 0:
        known = (size[0], size[1])
    else:
        known = None
    return Annotation((root.findtext("filename") or "").strip() or None, known, tuple(objects))


def _number(text: str | None, key: str) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"expected a number in <{key}>, got {text!r}")
    return value


def fault(seen: Seen, size: tuple[int, int]) -> str | None:
    """Why nothing can be learned from a box in a picture of this height and width, or None."""
    x1, y1, x2, y2 = seen.box
    height, width = size
    corners = f"x {x1:g} to {x2:g}, y {y1:g} to {y2:g}"
    if x2 <= x1 or y2 <= y1:
        return f"'{seen.label}' has no area: {corners}"
    if (
        x1 < -1 or y1 < -1 or x2 > width + 1 or y2 > height + 1
    ):  # a pixel is a matter of counting from 0 or 1
        return f"'{seen.label}' reaches out of the picture of {width} x {height}: {corners}"
    return None


def rows_of(
    objects: Sequence[Seen],
    classes: Sequence[str],
    size: tuple[int, int],
    resized: tuple[int, int],
    *,
    crop: bool = False,
    ignore_difficult: bool = True,
) -> np.ndarray:
    """Boxes [M, 5] float32: the class's number, and corners in the pixels of the picture once it is
    `resized`.

    It is stretched, or with `crop` scaled until both sides are filled, of which the middle is
    taken; boxes that have no part in it are left out.
    """
    rows = np.empty((len(objects), 5), np.float32)
    scaled = resized
    if crop:
        scale = max(resized[0] / size[0], resized[1] / size[1])
        scaled = (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))
    down, across = scaled[0] / size[0], scaled[1] / size[1]
    top, left = ((whole - part) / 2 for whole, part in zip(scaled, resized, strict=True))
    for row, seen in zip(rows, objects, strict=True):
        number = classes.index(seen.label)
        if seen.difficult and ignore_difficult:
            row[0] = IGNORED - number
        else:
            row[0] = number
        row[1:] = np.array(seen.box) * [across, down, across, down] - [left, top, left, top]
        row[1:] = row[1:].clip(0, [resized[1], resized[0]] * 2)
    return rows[((rows[:, 3:] - rows[:, 1:3]) > 0).all(1)]


def stacked(rows: Sequence[np.ndarray], most: int) -> np.ndarray:
    """Boxes of N pictures as one target [N, most, 5], -1 in all that is left over."""
    target = np.full((len(rows), most, 5), -1.0, np.float32)
    for row, own in zip(target, rows, strict=True):
        row[: len(own)] = own
    return target


def mirrored(boxes: np.ndarray, size: tuple[int, int], *, across: bool) -> np.ndarray:
    """Boxes [M, 5] of the picture flipped left to right, or upside down where not `across`."""
    first, side = (1, size[1]) if across else (2, size[0])
    flipped = boxes.copy()
    there = boxes[:, 0] != -1
    flipped[there, first] = side - boxes[there, first + 2]
    flipped[there, first + 2] = side - boxes[there, first]
    return flipped
