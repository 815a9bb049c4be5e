"""A folder of Pascal VOC, made small: discs and squares of two colours on grey, with XML."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from raymtl.data import VOC

Object = tuple[str, float, float, float, float]
COLOURS = {"disc": (200, 40, 40), "square": (40, 40, 200)}
SIDES = (36, 48)
"""Height and width of the pictures as they are stored."""


def xml(
    objects: Sequence[Object],
    size: tuple[int, int] = SIDES,
    difficult: Sequence[int] = (),
    more: str = "",
) -> str:
    """An annotation; `difficult` are the numbers of the objects that are."""
    parts = [
        f"<object><name>{label}</name><difficult>{int(number in difficult)}</difficult><bndbox>"
        f"<xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
        for number, (label, x1, y1, x2, y2) in enumerate(objects)
    ]
    height, width = size
    return (
        f"{more}<annotation><filename>other.jpg</filename><size><width>{width}</width><height>{height}</height>"
        f"<depth>3</depth></size>{''.join(parts)}</annotation>"
    )


def scene(rng: np.random.Generator, most: int = 4) -> tuple[np.ndarray, list[Object]]:
    """A picture and what is in it: none to `most` objects, drawn in the order of the list."""
    height, width = SIDES
    pixels = rng.integers(100, 130, (height, width, 3), dtype=np.uint8)
    y, x = np.mgrid[:height, :width] + 0.5
    objects: list[Object] = []
    for _ in range(int(rng.integers(0, most + 1))):
        label = ("disc", "square")[int(rng.integers(2))]
        half = int(rng.integers(4, 8))
        middle_x, middle_y = (
            int(rng.integers(half, width - half)),
            int(rng.integers(half, height - half)),
        )
        away = np.stack([x - middle_x, y - middle_y])
        inside = np.hypot(*away) < half if label == "disc" else np.abs(away).max(0) < half
        pixels[inside] = COLOURS[label]
        objects.append((label, middle_x - half, middle_y - half, middle_x + half, middle_y + half))
    return pixels, objects


def write_voc(
    root: Path, number: int = 40, *, sets: bool = True, year: str = "2007"
) -> dict[str, list[Object]]:
    """VOCdevkit below `root`: pictures p000 ..., of which 60 % are for training; -> name -> objects."""
    folder = root / "VOCdevkit" / f"VOC{year}"
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    written = {}
    for i in range(number):
        pixels, objects = scene(rng)
        name = f"p{i:03d}"
        Image.fromarray(pixels).save(folder / "JPEGImages" / f"{name}.png")
        (folder / "Annotations" / f"{name}.xml").write_text(xml(objects))
        written[name] = objects
    if sets:
        names = list(written)
        cuts = [0, int(0.6 * number), int(0.8 * number), number]
        for split, start, stop in zip(("train", "val", "test"), cuts, cuts[1:], strict=False):
            (folder / "ImageSets" / "Main" / f"{split}.txt").write_text(
                "\n".join(names[start:stop]) + "\n"
            )
    return written


def small_cells(folder: Path) -> VOC:
    """The source of such folders."""
    write_voc(folder)
    return VOC(folder=str(folder)).resolve()
