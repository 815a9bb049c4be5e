"""Outputs that are drawn rather than told: boxes on the picture, and maps of classes, depths and
directions.
"""

import base64
import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from raymtl.reporting.html.collect import Row
from raymtl.tasks import MapKind
from raymtl.types import Task

LEAST_SCORE = 0.5
"""Of the boxes that are drawn; those below it are many, and matter to the average precision alone.
"""


class Box(NamedTuple):
    """A rectangle in pixels of the picture, and what stands at it."""

    left: float
    top: float
    width: float
    height: float
    text: str


class Side(NamedTuple):
    """A picture, boxes that are drawn on it, and the faint ones of the truth below them."""

    source: str
    boxes: Sequence[Box] = ()
    behind: Sequence[Box] = ()


class Panel(NamedTuple):
    """What there is and what the model says there is, after adaptation, side by side."""

    task: str
    width: int
    height: int
    truth: Side
    after: Side
    legend: Sequence[tuple[str, str]] = ()
    """Class and colour."""
    on_input: bool = False
    """Whether it shows the input itself."""


def panels(row: Row, task: Task, names: Sequence[str]) -> list[Panel]:
    """One, or none of a task without a label here or whose outputs are no maps and no boxes."""
    columns = (f"{task.name}.target", f"{task.name}.after")
    if any(row.get(f"{column}.shape") is None for column in columns):
        return []
    truth, after = (_array(row, column) for column in columns)
    if isinstance(task.kind, MapKind):
        return [_maps(task, task.kind, names, truth, after)]
    if task.kind.has_boxes:
        return [_boxes(row, task, names, truth, after)]
    return []


def _array(row: Row, column: str) -> np.ndarray:
    return np.array(row[column], np.float64).reshape([int(side) for side in row[f"{column}.shape"]])


def _boxes(
    row: Row, task: Task, names: Sequence[str], truth: np.ndarray, found: np.ndarray
) -> Panel:
    pixels = np.array(row["input"], np.uint8).reshape(row["shape"]).transpose(1, 2, 0)
    source = png(pixels)
    height, width = pixels.shape[:2]
    true = [_box(label, corners, names) for label, *corners in truth.tolist() if label >= 0]
    said = [
        _box(label, corners, names, score)
        for label, *corners, score in found.tolist()
        if label >= 0 and score >= LEAST_SCORE
    ]
    return Panel(
        task.name, width, height, Side(source, true), Side(source, said, true), on_input=True
    )


def _box(
    label: float, corners: Sequence[float], names: Sequence[str], score: float | None = None
) -> Box:
    left, top, right, bottom = corners
    if int(label) < len(names):
        name = names[int(label)]
    else:
        name = str(int(label))
    return Box(
        left, top, right - left, bottom - top, name if score is None else f"{name} {score:.2f}"
    )


def _maps(
    task: Task, kind: MapKind, names: Sequence[str], truth: np.ndarray, after: np.ndarray
) -> Panel:
    both = np.concatenate([truth, after], axis=-2)  # colours on one scale
    true_pixels, after_pixels = np.split(kind.render(both), 2)
    height, width = true_pixels.shape[:2]
    legend = [
        (name, f"rgb({red},{green},{blue})")
        for name, (red, green, blue) in kind.legend(both, names)
    ]
    return Panel(task.name, width, height, Side(png(true_pixels)), Side(png(after_pixels)), legend)


def png(pixels: np.ndarray) -> str:
    """Pixels [H, W, 1 or 3] uint8 as the source of an inline image."""
    content = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(content, "PNG")
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()
