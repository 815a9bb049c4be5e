"""What a source is made of, before anything is trained on it: columns, tasks, splits, and a batch
to look at.
"""

import math
import unicodedata
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from raymtl.data.base import SPLITS, Arrays, Source
from raymtl.data.episodes import build_episodes
from raymtl.data.tables import Files, FittedColumn
from raymtl.tasks import MapKind
from raymtl.tasks.colours import class_colours
from raymtl.types import Batch, TaskKind, UserError

if TYPE_CHECKING:
    import pyarrow as pa
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

SHOWN = 24
"""Examples in the picture of a batch."""
MOST_COLUMNS = 40
"""Of a table in it."""
SIDE, LINE, MARGIN = 96, 15, 8  # of a picture in it, of a line of text, between pictures: pixels
LETTERS = 22  # of a cell of text


def inspect(source: Source, seed: int) -> tuple[dict[str, Any], Arrays]:
    """Shapes, tasks and splits, and of files all that was found in them; and the arrays that this
    was told from.

    `notes` says what was decided for the user. Raises UserError for what cannot be learned from.
    """
    arrays = source.load()
    told: dict[str, Any] = {
        "input_shape": list(source.input_shape),
        "pictures": source.is_image,
        "tasks": {
            task.name: {"kind": task.kind.name, "metrics": list(task.metrics)}
            for task in source.make_tasks()
        },
        "labelled_for_training": dict(source.sizes(arrays)),
        "notes": [note.model_dump() for note in source.notes(arrays)],
    }
    if isinstance(source, Files):
        told |= _of_files(source, arrays)
    (stack, *_), domains = build_episodes(
        source, arrays, seed=seed, split="train", step=0, indices=[0]
    )
    told["episode"] = {
        "domain": domains[0],
        "support": {name: len(target[0]) for name, target in stack.support.targets.items()},
        "query": {name: len(target[0]) for name, target in stack.query.targets.items()},
    }
    return told, arrays


def _of_files(source: Files, arrays: Arrays) -> dict[str, Any]:
    from raymtl.data.tables.column_names import label_columns
    from raymtl.data.tables.dataset import TableDataset

    found = source.found
    dataset = TableDataset(source)
    rows, _ = dataset.together(range(len(dataset.blocks)) if found.pool is None else [0])
    columns = []
    kinds = dict(zip(rows.table.schema.names, rows.table.schema.types, strict=True))
    every = dict(zip(rows.table.column_names, rows.table.columns, strict=True))
    for column in found.columns:
        values = every[column.column]
        columns.append(
            {
                "column": column.column,
                "type": str(_of_values(kinds[column.column])),
                "role": column.role,
                "numbers": math.prod(source.input_shape)
                if column.role == "picture"
                else column.size,
                "missing": values.null_count / len(values),
                "normalised_by": _normalised(column),
                **(
                    {"mean": column.mean, "spread": column.std}
                    if column.role in ("number", "vector")
                    else {}
                ),
            }
        )
    side = arrays["side"]
    tasks = {}
    for name in source.task_names:
        fitted = found.tasks[name]
        target, mask = arrays[f"target/{name}"], arrays[f"mask/{name}"]
        tasks[name] = {
            "columns": list(label_columns(name, fitted.asked)),
            "kind": fitted.kind,
            "inferred": fitted.inferred,
            "yes": fitted.task_kind.positive_class(fitted.classes),
            "missing": 1 - fitted.labelled,
            "splits": {
                split: {
                    "labelled": int((mask & (side == number)).sum()),
                    "balance": fitted.task_kind.summarise(
                        target[mask & (side == number)], fitted.classes
                    ),
                }
                for number, split in enumerate(SPLITS)
            },
        }
    told: dict[str, Any] = {
        "format": found.format,
        "rows": found.rows,
        "streamed": found.pool is not None,
        "split_by": found.split_by,
        "splits": {split: int((side == number).sum()) for number, split in enumerate(SPLITS)},
        "columns": columns,
        "left_out": dict(found.left_out),
        "tasks": tasks,
    }
    if source.episodes != "rows":
        told[source.episodes] = {split: len(arrays[f"names/{split}"]) for split in SPLITS}
    return told


def _of_values(kind: "pa.DataType") -> "pa.DataType":
    """Without the dictionary that values were stored by."""
    if str(kind).startswith("dictionary"):
        return getattr(kind, "value_type", kind)
    return kind


def _normalised(column: FittedColumn) -> str:
    if column.role in ("number", "vector"):
        return f"mean {column.mean:.4g}, spread {column.std:.4g}"
    if column.role == "category":
        return f"one of {', '.join(column.categories[:6])}{' ...' if len(column.categories) > 6 else ''}, or another"
    return {"text": "hashed words", "picture": "0 to 1"}[column.role]


def draw_batch(source: Source, arrays: Arrays, seed: int, path: Path) -> None:
    """Writes the query set of the first training episode as a picture: each input with its labels."""
    from PIL import Image, ImageDraw, ImageFont

    (stack, *_), _ = build_episodes(source, arrays, seed=seed, split="train", step=0, indices=[0])
    batch = stack.query
    if not isinstance(
        batch.inputs, Tensor
    ):  # of the tasks with inputs of their own, those that share the first one's
        own = batch.inputs
        first = next(iter(own.values()))
        alike = {name: own[name] is first or own[name].equal(first) for name in batch.targets}
        batch = Batch(first, {n: t for n, t in batch.targets.items() if alike[n]}, batch.masks)
    assert isinstance(batch.inputs, Tensor)
    inputs = batch.inputs[0][:SHOWN]
    kinds = {t.name: t.kind for t in source.make_tasks() if t.name in batch.targets}
    painted = {name: kind.render for name, kind in kinds.items() if isinstance(kind, MapKind)}
    boxed = [name for name, kind in kinds.items() if kind.has_boxes]
    labels = [_labels(source, batch, row, kinds, painted) for row in range(len(inputs))]
    font = ImageFont.load_default(12)
    if source.is_image:
        across = min(6 if not painted else max(1, 12 // (1 + len(painted))), len(inputs))
        down = math.ceil(len(inputs) / across)
        tall = round(SIDE * min(1, inputs.shape[-2] / inputs.shape[-1]))
        height = tall + LINE * max(len(labels[0]), int(bool(painted))) + MARGIN
        text = 7 * max(
            (len(f"{n}: {v}"[:LETTERS]) for row in labels for n, v in row.items()), default=0
        )
        beside = max(SIDE, text) + MARGIN
        width = beside + len(painted) * (SIDE + MARGIN)
        sheet = Image.new("RGB", (MARGIN + across * width, MARGIN + down * height), "white")
        pen = ImageDraw.Draw(sheet)
        for number, picture in enumerate(inputs):
            left, top = MARGIN + number % across * width, MARGIN + number // across * height
            if len(picture) == 1:
                pixels = picture.expand(3, -1, -1)
            else:
                pixels = picture[:3]
            shown = _enlarged(pixels.permute(1, 2, 0).contiguous().numpy())
            sheet.paste(shown, (left, top))
            for name in boxed:
                if name not in batch.masks or bool(batch.masks[name][0, number]):
                    _draw_boxes(
                        pen,
                        batch.targets[name][0, number].numpy(),
                        shown.width / pixels.shape[-1],
                        left,
                        top,
                    )
            for line, (name, value) in enumerate(labels[number].items()):
                pen.text(
                    (left, top + tall + LINE * line),
                    _plain(f"{name}: {value}")[:LETTERS],
                    "black",
                    font,
                )
            for place, (name, paint) in enumerate(painted.items()):
                right = left + beside + place * (SIDE + MARGIN)
                if name in batch.masks:
                    there = bool(batch.masks[name][0, number])
                else:
                    there = True
                if there:
                    sheet.paste(
                        _enlarged(paint(batch.targets[name][0, number].numpy())), (right, top)
                    )
                caption = _plain(name if there else f"{name}: -")[: SIDE // 7]
                pen.text((right, top + tall), caption, "black", font)
    else:
        table = [{**_values(source, row), **labels[i]} for i, row in enumerate(inputs)]
        widths = {
            key: 7 * min(LETTERS, max(len(key), *(len(str(row[key])) for row in table))) + MARGIN
            for key in table[0]
        }
        sheet = Image.new(
            "RGB",
            (2 * MARGIN + sum(widths.values()), 2 * MARGIN + LINE * (len(table) + 1)),
            "white",
        )
        pen = ImageDraw.Draw(sheet)
        for number, line_of in enumerate([{key: key for key in widths}, *table]):
            left = MARGIN
            for key, width in widths.items():
                if number == 0:
                    ink = "black"
                elif key in labels[0]:
                    ink = "firebrick"
                else:
                    ink = "dimgray"
                pen.text((left, MARGIN + LINE * number), _plain(line_of[key])[:LETTERS], ink, font)
                left += width
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(path)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: expected where a picture can be written, such as batch.png ({error})."
        ) from None


def _draw_boxes(pen: "ImageDraw", boxes: np.ndarray, scale: float, left: int, top: int) -> None:
    """The objects of a target [M, 5] on a picture that stands there, enlarged; each class in a
    colour of its own.
    """
    for label, *corners in boxes[boxes[:, 0] != -1].tolist():
        if label >= 0:
            number = int(label)
        else:
            number = -2 - int(label)
        x1, y1, x2, y2 = (scale * corner for corner in corners)
        colour = tuple(class_colours(np.array([[number]]))[0, 0].tolist())
        pen.rectangle(
            (left + x1, top + y1, left + max(x2 - 1, x1), top + max(y2 - 1, y1)), outline=colour
        )


def _enlarged(pixels: np.ndarray) -> "Image":
    """[H, W, 3] uint8 as a picture whose longer side is about SIDE."""
    from PIL import Image

    shown = Image.fromarray(pixels)
    if max(shown.size) > SIDE:
        shown.thumbnail((SIDE, SIDE))
    scale = max(1, SIDE // max(shown.size))
    return shown.resize((shown.width * scale, shown.height * scale), Image.Resampling.NEAREST)


def _plain(text: str) -> str:
    """In letters that Pillow's own font has."""
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode() or "?"


def _labels(
    source: Source, batch: Batch, row: int, kinds: Mapping[str, TaskKind], painted: Collection[str]
) -> dict[str, str]:
    """Of an example, task by task, as a person reads them; without those that are painted."""
    shown = {}
    for name, target in batch.targets.items():
        if name in painted:
            continue
        if name in batch.masks and not bool(batch.masks[name][0, row]):
            shown[name] = "-"
            continue
        value = target[0, row]
        classes = source.class_names(name)
        if value.ndim == 0:
            if classes:
                shown[name] = classes[int(value)]
            else:
                shown[name] = f"{float(value):.4g}"
        elif kinds[name].has_label_sets and classes:
            shown[name] = " ".join(
                label for label, there in zip(classes, value.tolist(), strict=True) if there == 1
            )
        elif value.ndim == 1 and len(value) <= 4:
            shown[name] = " ".join(f"{number:.3g}" for number in value.tolist())
        elif kinds[name].has_boxes:
            shown[name] = ", ".join(
                f"{count} {label}"
                for n, label in enumerate(classes)
                if (count := int((value[:, 0] == n).sum()))
            )
        else:
            shown[name] = "x".join(str(side) for side in value.shape)
    return shown


def _values(source: Source, row: Tensor) -> dict[str, str]:
    """Of an input that is no picture, column by column in its own unit."""
    if not isinstance(source, Files):
        return {f"input {i}": f"{float(v):.3g}" for i, v in enumerate(row.flatten()[:12])}
    read: Mapping[str, Callable[[FittedColumn, Tensor], str]] = {
        "number": lambda column, part: f"{float(part[0]) * column.std + column.mean:.4g}",
        "category": lambda column, part: (*column.categories, "(another)")[int(part.argmax())],
        "text": lambda column, part: f"{int((part > 0).sum())} words",
        "vector": lambda column, part: f"{float(torch.linalg.vector_norm(part)):.3g} long",
    }
    shown, start = {}, 0
    for column in source.found.columns[:MOST_COLUMNS]:
        shown[column.column] = read[column.role](column, row[start : start + column.size])
        start += column.size
    return shown
