"""`predictions.parquet`: what a model says of rows, as a person reads it (docs/adapt.md).

Numbers stand in the unit of the file, classes under their names beside a probability for each;
masks and boxes in the pixels of the original picture.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from raymtl.data import Arrays, Files, Several, Source, Split
from raymtl.data.base import HeldOut
from raymtl.data.episodes import on_device
from raymtl.data.tables.row_origins import RowOrigins, held_out
from raymtl.step.algorithm import Algorithm
from raymtl.storage import atomic
from raymtl.tasks import MapKind
from raymtl.types import LabelForm, Params, Task, UserError

NUMBERS_AT_ONCE = 2**24  # of maps that are in memory
EXAMPLES_AT_ONCE = 256
"""Held-out rows that are predicted in one pass."""
RESERVED = ("row", "file")
BOX = pa.struct(
    [
        ("class", pa.string()),
        *((key, pa.float64()) for key in ("x1", "y1", "x2", "y2", "score")),
        ("difficult", pa.bool_()),
    ]
)
IGNORED = -2
"""The class of a difficult object of class c is -2 - c."""

Columns = dict[str, pa.Array]
WHEN = ("target", "before", "after")


class Placed(NamedTuple):
    """How the pictures of a source were brought to one shape."""

    size: tuple[int, int]
    crop: bool


class Said(NamedTuple):
    """What is known and said of one task, by rows [N, ...]."""

    task: Task
    classes: tuple[str, ...]
    """Of classes or labels, by their numbers; the numbers themselves where they have no names."""
    named: bool
    values: tuple[int, ...]
    """The numbers that stand for the classes in the user's maps; none where these are 0, 1, 2 ...
    """
    target: Tensor | None
    known: np.ndarray
    """[N] bool: which rows have a label."""
    before: Tensor | None
    after: Tensor

    def at(self, rows: slice) -> "Said":
        """Those rows alone."""
        if self.target is None:
            target = None
        else:
            target = self.target[rows]
        if self.before is None:
            before = None
        else:
            before = self.before[rows]
        return self._replace(
            known=self.known[rows], target=target, before=before, after=self.after[rows]
        )


def said_of(
    source: Source,
    task: Task,
    target: Tensor | None,
    known: Tensor | None,
    before: Tensor | None,
    after: Tensor,
    classes: Sequence[str] = (),
) -> Said:
    """With the names of the classes: those given, or the source's."""
    if task.name in source.task_names:
        own = source.class_names(task.name)
    else:
        own = ()
    names = tuple(classes) or own
    numbers = tuple(str(label) for label in range(task.num_classes))
    if target is None:
        there = np.zeros(len(after), bool)
    else:
        if known is None:
            there = np.ones(len(after), bool)
        else:
            there = known.cpu().numpy()
    return Said(
        task,
        names or numbers,
        bool(names),
        _values_of(source, task.name),
        target,
        there,
        before,
        after,
    )


def _values_of(source: Source, task: str) -> tuple[int, ...]:
    if isinstance(source, Several):
        part, own = source.part_of(task)
        return _values_of(source.parts[part], own)
    if isinstance(source, Files) and task in source.found.tasks:
        return source.found.tasks[task].values
    return ()


def placed_of(source: Source) -> Placed | None:
    """How the pictures of the user's files were resized; None of another source."""
    if isinstance(source, Files) and source.is_image:
        height, width = source.input_shape[-2:]
        return Placed((height, width), source.resize == "crop")
    return None


def write_held_out(
    path: Path, source: Source, algorithm: Algorithm, params: Params, arrays: Arrays, split: Split
) -> int:
    """Publishes what a model that does not adapt predicts of every row of a split; returns how many
    rows there are.

    Raises UserError where the model adapts, or where the examples of the split are made by chance.
    """
    sections = () if algorithm.uses_support else source.every_example(arrays, split)
    if not sections:
        raise UserError(
            "--predictions: expected a model that does not adapt and a split of rows, got one that "
            "is scored on episodes. `raymtl adapt RUN --episode N` writes the predictions of one."
        )

    def tables(section: HeldOut) -> Iterator[pa.Table]:
        whole = RowOrigins(section.rows)
        if isinstance(source, Files):
            whole = (
                held_out(
                    source, section.rows, shapes=any(task.is_dense for task in algorithm.tasks)
                )
                or whole
            )
        for start in range(0, len(section.rows), EXAMPLES_AT_ONCE):
            rows = np.arange(start, min(start + EXAMPLES_AT_ONCE, len(section.rows)))
            batch = on_device(section.batch(section.rows[rows]), "cpu")
            with torch.no_grad():
                predicted = algorithm.predict(params, batch.inputs)
            said = [
                said_of(
                    source,
                    task,
                    batch.targets[task.name],
                    batch.masks.get(task.name),
                    None,
                    predicted[task.name],
                )
                for task in algorithm.tasks
                if task.name in batch.targets
            ]
            yield from _tables(said, whole.at(rows), placed_of(source))

    def write(aside: Path) -> None:
        if len(sections) == 1:
            _write(aside, tables(sections[0]))
            return
        parts = [table for section in sections for table in tables(section)]
        _write(aside, iter([pa.concat_tables(parts, promote_options="default")]))

    try:
        atomic.publish(path, write)
    except OSError as error:
        raise UserError(
            f"--predictions: {path} cannot be written ({error.strerror}). Choose another place."
        ) from None
    return sum(len(section.rows) for section in sections)


def write_predictions(
    path: Path, said: Sequence[Said], asked: RowOrigins, placed: Placed | None = None
) -> None:
    """Publishes the predictions of these rows, some at a time."""

    atomic.publish(path, lambda aside: _write(aside, _tables(said, asked, placed)))


def _write(path: Path, tables: Iterator[pa.Table]) -> None:
    """One after the other; there is one at least."""
    first = next(tables)
    with pq.ParquetWriter(path, first.schema) as writer:
        writer.write_table(first)
        for table in tables:
            writer.write_table(table)


def _tables(said: Sequence[Said], asked: RowOrigins, placed: Placed | None) -> Iterator[pa.Table]:
    number = len(asked.rows)
    largest = 1
    if asked.shapes is not None and number and any(one.task.is_dense for one in said):
        largest = int(asked.shapes.prod(1).max())
    step = max(1, NUMBERS_AT_ONCE // largest)
    for start in range(0, max(1, number), step):
        rows = slice(start, start + step)
        part = asked.at(np.arange(number)[rows])
        columns = _naming(part)
        for one in said:
            own = COLUMNS[one.task.kind.label_form](one.at(rows), part.shapes, placed)
            columns |= {name: _padded(values, len(part.rows)) for name, values in own.items()}
        yield pa.table(columns)


def _padded(values: pa.Array, number: int) -> pa.Array:
    """With nulls behind it where a task has inputs of its own, and fewer than others."""
    return pa.concat_arrays([values, pa.nulls(number - len(values), values.type)])


def _naming(asked: RowOrigins) -> Columns:
    columns: Columns = {"row": pa.array(asked.rows, pa.int64())}
    if asked.files is not None:
        columns["file"] = pa.array(asked.files, pa.string())
    if asked.named is not None:
        if asked.named in RESERVED:
            name = f"key {asked.named}"
        else:
            name = asked.named
        columns[name] = pa.array(asked.names, pa.string())
    return columns


def _where_known(said: Said, values: list[object], kind: pa.DataType) -> pa.Array:
    return pa.array(
        [value if there else None for value, there in zip(values, said.known, strict=True)], kind
    )


def _readable(said: Said) -> dict[str, Tensor | None]:
    """What was said before and after, in float64, as a person reads it."""
    read = said.task.decode
    return {
        "before": None if said.before is None else read(said.before.double()),
        "after": read(said.after.double()),
    }


def _of_classes(said: Said, shapes: np.ndarray | None, placed: Placed | None) -> Columns:
    """The class by its name, and a probability for each."""
    name, number = said.task.name, len(said.after)
    if said.named:
        kind = pa.string()
    else:
        kind = pa.int64()

    def labels_of(values: Tensor | None, known: np.ndarray) -> list[object]:
        if values is None:
            return [None] * number
        return [
            _class_of(said, int(v)) if there else None
            for v, there in zip(values, known, strict=True)
        ]

    columns: Columns = {f"{name}.target": pa.array(labels_of(said.target, said.known), kind)}
    for when, values in _readable(said).items():
        labels = labels_of(values, np.ones(number, bool))
        columns[f"{name}.{when}"] = pa.array(labels, kind)
    probabilities = _probabilities(said)
    columns[f"{name}.probability"] = pa.array(probabilities.max(1) if number else [], pa.float64())
    for label, own in zip(said.classes, probabilities.T, strict=False):
        columns[f"{name}.probability.{label}"] = pa.array(own, pa.float64())
    return columns


def _class_of(said: Said, number: int) -> str | int | None:
    """The class; None for one that has no name, of more classes than there are in an episode."""
    if not said.named:
        return number
    if number < len(said.classes):
        return said.classes[number]
    return None


def _probabilities(said: Said) -> np.ndarray:
    """[N, classes]"""
    found: np.ndarray = said.task.kind.probabilities(said.after.double()).numpy()
    return found


def _of_labels(said: Said, shapes: np.ndarray | None, placed: Placed | None) -> Columns:
    """The labels by their names; of each whether it is there, which may be unknown, and its
    probability.
    """
    name, number = said.task.name, len(said.after)
    kind = pa.list_(pa.string())

    def names(flags: Tensor | None) -> list[object]:
        if flags is None:
            return [None] * number
        return [
            [label for label, there in zip(said.classes, row, strict=True) if there == 1]
            for row in flags.tolist()
        ]

    columns: Columns = {f"{name}.target": _where_known(said, names(said.target), kind)}
    for when, values in _readable(said).items():
        columns[f"{name}.{when}"] = pa.array(names(values), kind)
    if said.target is None:
        truth = torch.full((number, len(said.classes)), torch.nan)
    else:
        truth = said.target.double()
    likely = said.after.double().sigmoid()
    for place, label in enumerate(said.classes):
        own = truth[:, place].numpy()
        known = said.known & ~np.isnan(own)
        columns[f"{name}.target.{label}"] = pa.array(own == 1, pa.bool_(), mask=~known)
        columns[f"{name}.probability.{label}"] = pa.array(likely[:, place].numpy(), pa.float64())
    return columns


def _of_numbers(said: Said, shapes: np.ndarray | None, placed: Placed | None) -> Columns:
    """A number, or a vector as a list, in the unit of the file."""
    name, number = said.task.name, len(said.after)
    kind: pa.DataType
    if said.task.target_shape:
        kind = pa.list_(pa.float64())
    else:
        kind = pa.float64()

    def listed(values: Tensor | None) -> list[object]:
        if values is None:
            return [None] * number
        return values.double().tolist()

    columns: Columns = {
        f"{name}.target": _where_known(said, _without_nan(listed(said.target)), kind)
    }
    for when, values in _readable(said).items():
        columns[f"{name}.{when}"] = pa.array(listed(values), kind)
    return columns


def _without_nan(values: list[object]) -> list[object]:
    """Components that are missing as null."""
    return [
        [None if v != v else v for v in value] if isinstance(value, list) else value
        for value in values
    ]


def _of_maps(said: Said, shapes: np.ndarray | None, placed: Placed | None) -> Columns:
    """Row-major lists with their shapes beside them, as large as the original pictures."""
    name, number = said.task.name, len(said.after)
    kind = said.task.kind
    assert isinstance(kind, MapKind)
    classes = kind.has_integer_targets
    if classes:
        inner = pa.int32()
    else:
        inner = pa.float32()
    read = {"target": said.target, **_readable(said)}
    columns: Columns = {}
    for when in WHEN:
        values = read[when]
        lists: list[np.ndarray | None] = [None] * number
        sides: list[list[int] | None] = [None] * number
        for row in range(number):
            if values is None or (when == "target" and not said.known[row]):
                continue
            if classes:
                own = _in_values(said, values[row].numpy())
            else:
                own = values[row].numpy()
            if shapes is None:
                shape = None
            else:
                shape = (int(shapes[row, 0]), int(shapes[row, 1]))
            if shape is not None and placed is not None:
                own = unplaced_map(own, shape, placed, nothing=kind.missing_value)
            lists[row] = own.astype(np.int32 if classes else np.float32).ravel()
            sides[row] = list(own.shape)
        columns[f"{name}.{when}"] = pa.array(lists, pa.list_(inner))
        columns[f"{name}.{when}.shape"] = pa.array(sides, pa.list_(pa.int64()))
    if classes:
        numbers = said.values or tuple(range(len(said.classes)))
        legend = [
            {"value": value, "class": label}
            for value, label in zip(numbers, said.classes, strict=False)
        ]
        entries = pa.list_(pa.struct([("value", pa.int32()), ("class", pa.string())]))
        columns[f"{name}.classes"] = pa.array([legend] * number, entries)
    return columns


def _in_values(said: Said, classes: np.ndarray) -> np.ndarray:
    """The numbers that stand for these classes in the user's own maps; -1 where nothing is said."""
    if not said.values:
        return classes
    values = np.array([*said.values, -1])  # the class -1 is the last
    found: np.ndarray = values[classes.astype(np.int64).clip(min=-1)]
    return found


def unplaced_map(
    values: np.ndarray, shape: tuple[int, int], placed: Placed, nothing: int
) -> np.ndarray:
    """A map [..., *placed.size] in the pixels of the picture of this shape, each from the nearest
    pixel.

    `nothing` stands where a crop has left the picture away.
    """
    indices, inside = [], []
    for side, (own, resized) in enumerate(zip(shape, placed.size, strict=True)):
        scaled = _scaled(shape, placed)[side]
        place = np.floor((np.arange(own) + 0.5) * scaled / own).astype(np.int64) - round(
            (scaled - resized) / 2
        )
        inside.append((place >= 0) & (place < resized))
        indices.append(place.clip(0, resized - 1))
    found = values[..., indices[0][:, None], indices[1]]
    whole: np.ndarray = np.where(
        inside[0][:, None] & inside[1], found, np.array(nothing, found.dtype)
    )
    return whole


def _scaled(shape: tuple[int, int], placed: Placed) -> tuple[int, int]:
    """What a picture of this shape was resized to, before its middle was taken."""
    if not placed.crop:
        return placed.size
    scale = max(placed.size[0] / shape[0], placed.size[1] / shape[1])
    return max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))


def _of_boxes(said: Said, shapes: np.ndarray | None, placed: Placed | None) -> Columns:
    """Boxes with their classes and scores, in the pixels of the original pictures."""
    name, number = said.task.name, len(said.after)
    read = {"target": said.target, **_readable(said)}
    columns: Columns = {}
    for when in WHEN:
        values = read[when]
        found: list[object] = [None] * number
        for row in range(number):
            if values is None or (when == "target" and not said.known[row]):
                continue
            if shapes is None:
                shape = None
            else:
                shape = (int(shapes[row, 0]), int(shapes[row, 1]))
            found[row] = _boxes(said, values[row].double().numpy(), shape, placed)
        columns[f"{name}.{when}"] = pa.array(found, pa.list_(BOX))
    return columns


def _boxes(
    said: Said, rows: np.ndarray, shape: tuple[int, int] | None, placed: Placed | None
) -> list[dict[str, object]]:
    """Rows [M, 5 or 6]: class, corners and where it was predicted the score; -1 where there is
    none.
    """
    boxes = []
    for label, *rest in rows[rows[:, 0] != -1].tolist():
        corners = np.array(rest[:4])
        if shape is not None and placed is not None:
            corners = unplaced_box(corners, shape, placed)
        difficult = label <= IGNORED
        if difficult:
            number = IGNORED - int(label)
        else:
            number = int(label)
        box: dict[str, object] = dict(zip(("x1", "y1", "x2", "y2"), corners.tolist(), strict=True))
        if len(rest) > 4:
            score = rest[4]
        else:
            score = None
        boxes.append({"class": said.classes[number], **box, "score": score, "difficult": difficult})
    return boxes


def unplaced_box(corners: np.ndarray, shape: tuple[int, int], placed: Placed) -> np.ndarray:
    """x1, y1, x2, y2 in a picture as it was resized -> in the picture of this shape."""
    scaled = _scaled(shape, placed)
    down, across = scaled[0] / shape[0], scaled[1] / shape[1]
    top, left = ((own - resized) / 2 for own, resized in zip(scaled, placed.size, strict=True))
    found = (corners + np.array([left, top, left, top])) / [across, down, across, down]
    inside: np.ndarray = found.clip(0, [shape[1], shape[0]] * 2)
    return inside


COLUMNS: Mapping[LabelForm, Callable[[Said, np.ndarray | None, Placed | None], Columns]] = {
    "class": _of_classes,
    "set": _of_labels,
    "number": _of_numbers,
    "map": _of_maps,
    "boxes": _of_boxes,
}
