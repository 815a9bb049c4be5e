"""A picture of some examples with their labels, as `raymtl data inspect --batch` draws it."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from raymtl.data.base import Arrays, Source
from raymtl.data.canvas import LINE_HEIGHT, Canvas, text_width
from raymtl.data.episodes import build_episodes
from raymtl.data.prepared.source import files_of
from raymtl.data.tables import FittedColumn
from raymtl.tasks import MapKind
from raymtl.tasks.colours import class_colours
from raymtl.types import Batch, TaskKind

MOST_EXAMPLES = 24
MOST_COLUMNS = 40
"""Of a table."""
IMAGE_SIDE, MARGIN = 96, 8
"""Of an image, and between images, in pixels."""
MISSING = "-"
"""What stands for a label that is missing."""

Texts = Mapping[str, str]
"""Task or column -> what a person reads."""


class _Examples(NamedTuple):
    inputs: Tensor
    """[N, ...]"""
    targets: Mapping[str, Tensor]
    masks: Mapping[str, Tensor]
    kinds: Mapping[str, TaskKind]
    """Of the tasks in `targets`, in the order of the source."""

    @property
    def maps(self) -> dict[str, MapKind]:
        """The tasks whose labels are drawn as maps."""
        return {name: kind for name, kind in self.kinds.items() if isinstance(kind, MapKind)}

    def has_label(self, task: str, row: int) -> bool:
        return task not in self.masks or bool(self.masks[task][row])

    def target(self, task: str, row: int) -> np.ndarray:
        numbers: np.ndarray = self.targets[task][row].numpy()
        return numbers


def draw_batch(source: Source, arrays: Arrays, seed: int, path: Path) -> None:
    """Writes a picture of the first training episode's query set: each input with its labels."""
    (stack, *_), _ = build_episodes(source, arrays, seed=seed, split="train", step=0, indices=[0])
    examples = _examples(source, stack.query)
    texts = [_label_texts(source, examples, row) for row in range(len(examples.inputs))]
    if source.is_image:
        canvas = _draw_image_grid(examples, texts)
    else:
        canvas = _draw_table(source, examples, texts)
    canvas.save(path)


def _examples(source: Source, query: Batch) -> _Examples:
    """The first query examples, of an episode in a stack of one; where tasks have inputs of their
    own, of the tasks that share those of the first.
    """
    if isinstance(query.inputs, Tensor):
        inputs = query.inputs
        names = list(query.targets)
    else:
        inputs = next(iter(query.inputs.values()))
        names = [name for name in query.targets if query.inputs[name].equal(inputs)]
    kinds = {task.name: task.kind for task in source.make_tasks() if task.name in names}
    return _Examples(
        inputs[0][:MOST_EXAMPLES],
        {name: query.targets[name][0] for name in names},
        {name: mask[0] for name, mask in query.masks.items()},
        kinds,
    )


def _label_texts(source: Source, examples: _Examples, row: int) -> Texts:
    """The labels of an example, without those that are drawn as maps."""
    texts = {}
    for name, target in examples.targets.items():
        if name in examples.maps:
            continue
        if examples.has_label(name, row):
            texts[name] = label_text(examples.kinds[name], target[row], source.class_names(name))
        else:
            texts[name] = MISSING
    return texts


def label_text(kind: TaskKind, value: Tensor, classes: Sequence[str]) -> str:
    """A label that is no map, in words."""
    if kind.has_class_targets and classes and _is_mixture(value):
        return _mixture_text(value, classes)
    if value.ndim == 0 and classes:
        return classes[int(value)]
    if value.ndim == 0:
        return f"{float(value):.4g}"
    if kind.has_label_sets and classes:
        flags = zip(classes, value.tolist(), strict=True)
        return " ".join(label for label, flag in flags if flag == 1)
    if value.ndim == 1 and len(value) <= 4:
        return " ".join(f"{number:.3g}" for number in value.tolist())
    if kind.has_boxes:
        counts = kind.summarise(value[None].numpy(), classes)
        return ", ".join(f"{count} {label}" for label, count in counts.items() if count)
    return "x".join(str(size) for size in value.shape)


def _is_mixture(value: Tensor) -> bool:
    """Whether a label of classes is a mixture of several, as mixup makes them."""
    return value.ndim == 1 or not float(value).is_integer()


def _mixture_text(value: Tensor, classes: Sequence[str]) -> str:
    if value.ndim == 0:
        value = torch.stack([1 - value, value])
    shares = zip(classes, value.tolist(), strict=False)
    return ", ".join(f"{share:.0%} {label}" for label, share in shares if share >= 0.005)


class _Grid(NamedTuple):
    """Where the examples stand on a sheet, in pixels."""

    across: int
    image_height: int
    cell: tuple[int, int]
    """Width and height of what one example takes."""
    maps_from: int
    """Where its maps begin, from its left end."""

    def corner(self, number: int) -> tuple[int, int]:
        """Left and top of an example."""
        width, height = self.cell
        return MARGIN + number % self.across * width, MARGIN + number // self.across * height


def _grid(examples: _Examples, texts: Sequence[Texts]) -> _Grid:
    num_maps = len(examples.maps)
    across = 6
    if num_maps:
        across = max(1, 12 // (1 + num_maps))
    *_, height, width = examples.inputs.shape
    image_height = round(IMAGE_SIDE * min(1, height / width))
    num_lines = max(len(texts[0]), int(num_maps > 0))
    lines = [f"{name}: {text}" for labels in texts for name, text in labels.items()]
    maps_from = max(IMAGE_SIDE, text_width(lines)) + MARGIN
    cell = (
        maps_from + num_maps * (IMAGE_SIDE + MARGIN),
        image_height + LINE_HEIGHT * num_lines + MARGIN,
    )
    return _Grid(min(across, len(examples.inputs)), image_height, cell, maps_from)


def _draw_image_grid(examples: _Examples, texts: Sequence[Texts]) -> Canvas:
    """Each image with its boxes, the other labels below it, and its maps beside it."""
    grid = _grid(examples, texts)
    down = math.ceil(len(examples.inputs) / grid.across)
    canvas = Canvas(MARGIN + grid.across * grid.cell[0], MARGIN + down * grid.cell[1])
    for number, labels in enumerate(texts):
        left, top = grid.corner(number)
        scale = canvas.image(left, top, _pixels(examples.inputs[number]), IMAGE_SIDE)
        for name, kind in examples.kinds.items():
            if kind.has_boxes and examples.has_label(name, number):
                _draw_boxes(canvas, left, top, scale, examples.target(name, number))
        for line, (name, text) in enumerate(labels.items()):
            line_top = top + grid.image_height + LINE_HEIGHT * line
            canvas.text(left, line_top, f"{name}: {text}")
        _draw_maps(canvas, grid, examples, number)
    return canvas


def _pixels(image: Tensor) -> np.ndarray:
    """[C, H, W] -> [H, W, 3]: the first three channels, or the only one as grey."""
    if len(image) == 1:
        image = image.expand(3, -1, -1)
    pixels: np.ndarray = image[:3].permute(1, 2, 0).contiguous().numpy()
    return pixels


def _draw_boxes(canvas: Canvas, left: int, top: int, scale: float, boxes: np.ndarray) -> None:
    """The objects of a target [M, 5] on an image that was enlarged; each class in a colour."""
    for label, *corners in boxes[boxes[:, 0] != -1].tolist():
        if label >= 0:
            number = int(label)
        else:  # a difficult object
            number = -2 - int(label)
        x1, y1, x2, y2 = (scale * corner for corner in corners)
        colour = class_colours(np.array([[number]]))[0, 0].tolist()
        right, bottom = left + max(x2 - 1, x1), top + max(y2 - 1, y1)
        canvas.rectangle(left + x1, top + y1, right, bottom, colour)


def _draw_maps(canvas: Canvas, grid: _Grid, examples: _Examples, number: int) -> None:
    left, top = grid.corner(number)
    for place, (name, kind) in enumerate(examples.maps.items()):
        map_left = left + grid.maps_from + place * (IMAGE_SIDE + MARGIN)
        caption = f"{name}: {MISSING}"
        if examples.has_label(name, number):
            canvas.image(map_left, top, kind.render(examples.target(name, number)), IMAGE_SIDE)
            caption = name
        canvas.text(map_left, top + grid.image_height, caption[: IMAGE_SIDE // 7])


def _draw_table(source: Source, examples: _Examples, texts: Sequence[Texts]) -> Canvas:
    """A row for each example: its inputs, then its labels."""
    rows: list[Texts] = []
    for row, labels in zip(examples.inputs, texts, strict=True):
        rows.append({**_input_texts(source, row), **labels})
    header = {key: key for key in rows[0]}
    widths = {}
    for key in header:
        cells_of_column = [row[key] for row in (header, *rows)]
        widths[key] = MARGIN + text_width(cells_of_column)
    canvas = Canvas(2 * MARGIN + sum(widths.values()), 2 * MARGIN + LINE_HEIGHT * (len(rows) + 1))
    for number, cells in enumerate((header, *rows)):
        left = MARGIN
        for key, width in widths.items():
            ink = "dimgray"
            if number == 0:
                ink = "black"
            elif key in texts[0]:
                ink = "firebrick"
            canvas.text(left, MARGIN + LINE_HEIGHT * number, cells[key], ink)
            left += width
    return canvas


def _input_texts(source: Source, row: Tensor) -> Texts:
    """An input that is no image, column by column in its own unit."""
    files = files_of(source)
    if files is None:
        values = row.flatten()[:12].tolist()
        return {f"input {number}": f"{value:.3g}" for number, value in enumerate(values)}
    texts, start = {}, 0
    for column in files.found.columns[:MOST_COLUMNS]:
        own = row[start : start + column.size]
        texts[column.column] = COLUMN_TEXTS[column.role](column, own)
        start += column.size
    return texts


def _number_text(column: FittedColumn, values: Tensor) -> str:
    return f"{float(values[0]) * column.std + column.mean:.4g}"


def _category_text(column: FittedColumn, values: Tensor) -> str:
    return (*column.categories, "(another)")[int(values.argmax())]


def _terms_text(column: FittedColumn, values: Tensor) -> str:
    if column.encoder is not None:
        return _vector_text(column, values)
    return f"{int((values[column.size // 2 :] != 0).sum())} terms"


def _vector_text(column: FittedColumn, values: Tensor) -> str:
    return f"{float(torch.linalg.vector_norm(values)):.3g} long"


COLUMN_TEXTS: Mapping[str, Callable[[FittedColumn, Tensor], str]] = {
    "number": _number_text,
    "category": _category_text,
    "text": _terms_text,
    "vector": _vector_text,
}
