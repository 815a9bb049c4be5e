"""Labels that are boxes: found by the names of pictures, fitted and encoded."""

import posixpath
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from raymtl.data.formats.voc_xml import Seen, fault, rows_of, stacked
from raymtl.data.tables.listing import key_of
from raymtl.data.tables.pictures import Resize
from raymtl.data.tables.schema import FittedTask, TaskColumn, label_text
from raymtl.tasks.detection import DETECTION
from raymtl.types import UserError


class Marked(NamedTuple):
    """What the annotations say of one picture; or that, for this reason, they cannot be read."""

    picture: str
    objects: Sequence[tuple[str, Seen]]
    """Each with the file, and the place in it, that it stands in."""
    damaged: str | None = None


class Boxes:
    """The annotations of a task, found by the names of pictures."""

    def __init__(self, marked: Sequence[Marked], classes: Sequence[str], shown: str) -> None:
        self.marked = marked
        self.classes = tuple(classes)
        """In the order in which the annotations give them, or that of their letters."""
        self.shown = shown
        self.most = max([1, *(len(one.objects) for one in marked)])
        """Objects in a picture."""
        named: dict[str, int] = {}
        twice: set[str] = set()
        for number, one in enumerate(marked):
            for key in _keys(one.picture):
                if named.setdefault(key, number) != number:
                    twice.add(key)
        self._named = {key: number for key, number in named.items() if key not in twice}

    def of(self, names: Sequence[str | None], every: Sequence[str | None]) -> pa.Array:
        """The number of each picture's annotation, null where there is none; `every` are the names
        of all pictures.
        """
        alone = Counter(key for name in every if name for key in _keys(name))
        places: list[int | None] = []
        for name in names:
            # The path first; a name alone says nothing where two pictures have it.
            if name is None:
                keys = []
            else:
                keys = [key for key in _keys(name) if alone[key] <= 1]
            places.append(next((self._named[key] for key in keys if key in self._named), None))
        return pa.array(places, pa.int64())


def _keys(picture: str) -> list[str]:
    """What a picture may be called by: its path, its path without ending, its name, its name
    without ending.
    """
    path = key_of(picture)
    name = path.rpartition("/")[2]
    return list(
        dict.fromkeys([path, posixpath.splitext(path)[0], name, posixpath.splitext(name)[0]])
    )


def fit_boxes(
    name: str, column: TaskColumn, boxes: Boxes, index: pa.ChunkedArray, train: np.ndarray
) -> FittedTask:
    """The classes, and the share of pictures that have an annotation; rows for training [N].

    Raises UserError for a class outside those given, and where no picture for training has an
    annotation.
    """
    key = f"data.tasks.{name}"
    for given in ("separator", "loss"):
        if getattr(column, given) is not None:
            raise UserError(
                f"{key}.{given}: expected none of kind detection, got one. Leave it away."
            )
    if column.classes:
        classes = tuple(label_text(value) for value in column.classes)
    else:
        classes = boxes.classes
    _check_labels(name, boxes, classes)
    if not classes:
        raise UserError(f"{key}.path: {boxes.shown}: expected boxes, got none. Correct the path.")
    known = index.is_valid().to_numpy(zero_copy_only=False)
    if not known[train].any():
        example = boxes.marked[0].picture
        raise UserError(
            f"{key}.path: {boxes.shown}: expected annotations of the {int(train.sum())} pictures "
            f"for training, got those of others, such as '{example}'. Annotations are found by the "
            "names of pictures."
        )
    return FittedTask(
        asked=column,
        kind=DETECTION.name,
        inferred=column.task_kind is None,
        classes=classes,
        labelled=float(known[train].mean()),
    )


def _check_labels(name: str, boxes: Boxes, classes: Collection[str]) -> None:
    """Raises UserError for an object that is of none of the classes."""
    for one in boxes.marked:
        for location, seen in one.objects:
            if seen.label not in classes:
                raise UserError(
                    f"{location}: expected an object of task '{name}', one of {list(classes)}, got "
                    f"'{seen.label}'. Correct it, or add it to data.tasks.{name}.classes."
                )


class Targets(NamedTuple):
    """Boxes [N, M, 5] and which rows have an annotation; what is wrong with those that are left
    out.
    """

    target: np.ndarray
    mask: np.ndarray
    faults: Sequence[str]


def encode_boxes(
    fitted: FittedTask,
    boxes: Boxes,
    index: pa.ChunkedArray,
    shapes: np.ndarray,
    size: tuple[int, int],
    resize: Resize,
) -> Targets:
    """The boxes of pictures that had these shapes [N, 2], in the pixels of pictures of this
    size.
    """
    faults: list[str] = []
    rows, mask = [], np.zeros(len(index), bool)
    for row, number in enumerate(index.to_pylist()):
        if number is None:
            one = None
        else:
            one = boxes.marked[number]
        if one is not None and one.damaged:
            faults.append(one.damaged)
        # Pictures that cannot be read are reported with the inputs.
        if one is None or one.damaged or not shapes[row].all():
            rows.append(np.empty((0, 5), np.float32))
            continue
        mask[row] = True
        shape = (int(shapes[row, 0]), int(shapes[row, 1]))
        sound = list(_sound(one, shape, faults))
        rows.append(rows_of(sound, fitted.classes, shape, size, crop=resize == "crop"))
    return Targets(stacked(rows, boxes.most), mask, faults)


def _sound(one: Marked, shape: tuple[int, int], faults: list[str]) -> Iterator[Seen]:
    """The objects without a fault; what is wrong with the first of the others goes to `faults`."""
    first = True
    for where, seen in one.objects:
        why = fault(seen, shape)
        if why is None:
            yield seen
        elif first:
            faults.append(f"{where}: {why}")
            first = False
