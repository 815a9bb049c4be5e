"""Outputs that are drawn rather than told: boxes on the picture, and maps of classes, depths and directions."""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image
from plotly.colors import hex_to_rgb, sequential

from raymtl.report.collect import Row
from raymtl.report.look import PALETTE
from raymtl.types import Task

LEAST_SCORE = 0.3
"""Of the boxes that are drawn; those below it are many, and matter to the average precision alone."""


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


def panels(row: Row, task: Task, names: Sequence[str]) -> list[Panel]:
    """One, or none of a task without a label here or whose outputs are no maps and no boxes."""
    drawn = DRAWN.get(task.kind)
    if drawn is None or any(row.get(f"{task.name}.{part}.shape") is None for part in ("target", "after")):
        return []
    return [drawn(row, task, names, _array(row, f"{task.name}.target"), _array(row, f"{task.name}.after"))]


def _array(row: Row, column: str) -> np.ndarray:
    return np.array(row[column], np.float64).reshape([int(side) for side in row[f"{column}.shape"]])


def _boxes(row: Row, task: Task, names: Sequence[str], truth: np.ndarray, found: np.ndarray) -> Panel:
    pixels = np.array(row["input"], np.uint8).reshape(row["shape"]).transpose(1, 2, 0)
    source = png(pixels)
    height, width = pixels.shape[:2]
    true = [_box(label, corners, names) for label, *corners in truth.tolist() if label >= 0]
    said = [
        _box(label, corners, names, score)
        for label, *corners, score in found.tolist()
        if label >= 0 and score >= LEAST_SCORE
    ]
    return Panel(task.name, width, height, Side(source, true), Side(source, said, true))


def _box(label: float, corners: Sequence[float], names: Sequence[str], score: float | None = None) -> Box:
    left, top, right, bottom = corners
    name = names[int(label)] if int(label) < len(names) else str(int(label))
    return Box(left, top, right - left, bottom - top, name if score is None else f"{name} {score:.2f}")


def _classes(row: Row, task: Task, names: Sequence[str], truth: np.ndarray, found: np.ndarray) -> Panel:
    colours = np.array([hex_to_rgb(colour) for colour in PALETTE], np.uint8)
    ring = 1 - 0.45 * (np.arange(task.out_features) // len(colours) % 2)  # darker the second time round
    palette = (colours[np.arange(task.out_features) % len(colours)] * ring[:, None]).astype(np.uint8)
    drawn = []
    for values in (truth, found):
        number = np.nan_to_num(values, nan=-1).astype(int)
        pixels = palette[number.clip(0, len(palette) - 1)]
        pixels[number < 0] = 235  # what nobody has labelled
        drawn.append(pixels)
    there = sorted({int(value) for value in np.unique(np.concatenate([truth.ravel(), found.ravel()])) if value >= 0})
    legend = [
        (names[number] if number < len(names) else str(number), "#{:02x}{:02x}{:02x}".format(*palette[number]))
        for number in there
    ]
    return _maps(task, drawn, legend)


def _depths(row: Row, task: Task, names: Sequence[str], truth: np.ndarray, found: np.ndarray) -> Panel:
    known = np.isfinite(truth) & (truth > 0)
    low, high = (float(truth[known].min()), float(truth[known].max())) if known.any() else (0.0, 1.0)
    scale = np.array([hex_to_rgb(colour) for colour in sequential.Viridis], float)
    drawn = []
    for values, valid in ((truth, known), (found, np.isfinite(found))):
        place = (np.where(valid, values, low) - low) / max(high - low, 1e-9) * (len(scale) - 1)
        pixels = np.stack([np.interp(place, np.arange(len(scale)), channel) for channel in scale.T], -1).astype(
            np.uint8
        )
        pixels[~valid] = 235
        drawn.append(pixels)
    ends = [(f"{value:.3g}", "rgb({},{},{})".format(*scale[end].astype(int))) for value, end in ((low, 0), (high, -1))]
    return _maps(task, drawn, ends)


def _directions(row: Row, task: Task, names: Sequence[str], truth: np.ndarray, found: np.ndarray) -> Panel:
    drawn = []
    for values in (truth, found):
        vectors = np.nan_to_num(values).transpose(1, 2, 0)
        length = np.linalg.norm(vectors, axis=-1, keepdims=True)
        pixels = ((vectors / np.maximum(length, 1e-9) + 1) * 127.5).astype(np.uint8)
        pixels[length[..., 0] == 0] = 235
        drawn.append(pixels)
    return _maps(task, drawn, ())


def _maps(task: Task, drawn: Sequence[np.ndarray], legend: Sequence[tuple[str, str]]) -> Panel:
    truth, found = drawn
    height, width = truth.shape[:2]
    return Panel(task.name, width, height, Side(png(truth)), Side(png(found)), legend)


def png(pixels: np.ndarray) -> str:
    """Pixels [H, W, 1 or 3] uint8 as the source of an inline image."""
    content = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(content, "PNG")
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()


DRAWN: Mapping[str, Callable[[Row, Task, Sequence[str], np.ndarray, np.ndarray], Panel]] = {
    "detection": _boxes,
    "segmentation": _classes,
    "depth": _depths,
    "normals": _directions,
}
