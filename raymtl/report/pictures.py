"""Held-out inputs as inline images, with what the best model said before and after adaptation."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from raymtl.report.collect import Row
from raymtl.report.tables import show
from raymtl.types import Task

MOST = 12


class Answer(NamedTuple):
    """A prediction; `right` is None for a number, which is near or far, not right or wrong."""

    text: str
    right: bool | None


class Line(NamedTuple):
    """One task under a picture."""

    task: str
    target: str
    before: Answer
    after: Answer


class Picture(NamedTuple):
    """A picture with its domain and a line a task."""

    source: str
    domain: str
    lines: Sequence[Line]


def pictures(examples: Sequence[Row], tasks: Sequence[Task]) -> list[Picture]:
    """The first examples; none where the inputs are no pictures."""
    kinds = {task.name: task.kind for task in tasks}
    return [
        Picture(_data_uri(row["input"], row["shape"]), str(row["domain"]), _lines(row, kinds))
        for row in examples[:MOST]
        if len(row["shape"]) == 3 and row["shape"][0] in (1, 3) and isinstance(row["input"][0], int)
    ]


def _lines(row: Row, kinds: Mapping[str, str]) -> list[Line]:
    return [
        Line(
            task=task,
            target=_readable(row[f"{task}.target"], kind),
            before=_answer(row.get(f"{task}.before"), row[f"{task}.target"], kind),
            after=_answer(row.get(f"{task}.after"), row[f"{task}.target"], kind),
        )
        for task, kind in kinds.items()
        if isinstance(row.get(f"{task}.target"), float)  # numbers and classes; maps, boxes and vectors are not lines
    ]


def _answer(value: Any, target: Any, kind: str) -> Answer:
    right = value == target if kind == "classification" and value is not None else None
    return Answer(_readable(value, kind), right)


def _readable(value: Any, kind: str) -> str:
    if value is None:
        return "–"
    if kind == "classification" and isinstance(value, float):
        return str(int(value))
    return f"{value:.3g}" if isinstance(value, float) else show(value)


def _data_uri(values: Sequence[int], shape: Sequence[int]) -> str:
    pixels = np.array(values, np.uint8).reshape(shape).transpose(1, 2, 0)
    png = io.BytesIO()
    Image.fromarray(pixels[..., 0] if shape[0] == 1 else pixels).save(png, "PNG")
    return "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()
