"""Labels that are boxes: out of a folder of Pascal VOC's XML, out of COCO's JSON, or out of a
table.
"""

import json
import posixpath
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from raymtl.data.formats.voc_xml import Seen, fault, read_xml, rows_of, stacked
from raymtl.data.tables.blocks import Reading
from raymtl.data.tables.columns import LocateRow, in_order, numbers, texts
from raymtl.data.tables.listing import key_of
from raymtl.data.tables.paths import ENDINGS, FileSet
from raymtl.data.tables.pictures import Resize
from raymtl.data.tables.readers import open_table
from raymtl.data.tables.schema import FittedTask, Format, TaskColumn, label_text
from raymtl.tasks.detection import DETECTION
from raymtl.types import UserError

COLUMNS = ("picture", "class", "x1", "y1", "x2", "y2")
"""Of a table of boxes, unless `columns` gives others in this order."""
XML, JSON = ".xml", ".json"


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


def holds_boxes(file_set: FileSet, task: TaskColumn) -> bool:
    """Whether the path of a task means boxes: by its kind, or by the endings of the files."""
    marks = any(file.lower().endswith((XML, JSON)) for file in file_set.files)
    kind = task.task_kind
    if kind is None:
        return marks
    return kind.has_boxes


def sources_of(file_set: FileSet) -> list[str]:
    """The files of annotations: XML where there is any, else JSON, else tables."""
    endings: Sequence[tuple[str, ...]] = ((XML,), (JSON,), (*ENDINGS["parquet"], *ENDINGS["csv"]))
    for ending in endings:
        files = [file for file in file_set.files if file.lower().endswith(ending)]
        if files:
            return files
    return []


def read_boxes(file_set: FileSet, task: TaskColumn, reading: Reading, key: str) -> Boxes:
    """All annotations at a place. Raises UserError, naming file and row, for what cannot be one."""
    files = sources_of(file_set)
    if not files:
        raise UserError(
            f"{key}: {file_set.shown}: expected a folder of XML as of Pascal VOC, JSON as of COCO, "
            "or a table of boxes, got none of these. Correct the path."
        )
    lower = files[0].lower()
    if lower.endswith(XML):
        return _of_xml(file_set, files)
    if lower.endswith(JSON):
        return _of_json(file_set, files)
    return _of_tables(file_set, files, task, reading, key)


def _of_xml(file_set: FileSet, files: Sequence[str]) -> Boxes:
    marked, labels = [], set()
    for file in files:
        stem = posixpath.splitext(file.removeprefix(file_set.root).strip("/"))[0]
        try:
            one = read_xml(file_set.read(file))
        except (ValueError, OSError) as error:
            marked.append(Marked(stem, (), f"{file}: {error}"))
            continue
        labels |= {seen.label for seen in one.objects}
        marked.append(Marked(stem, [(file, seen) for seen in one.objects]))
    return Boxes(marked, in_order(labels), file_set.shown)


class _Coco(NamedTuple):
    """What a file of COCO holds: the names of classes and of pictures by their ids, and boxes."""

    file: str
    classes: Mapping[Any, str]
    pictures: Mapping[Any, str]
    annotations: Sequence[Any]


def _of_json(file_set: FileSet, files: Sequence[str]) -> Boxes:
    """COCO's instances (Lin et al., 2014, arXiv:1405.0312): a box is x, y, width, height; a crowd
    is difficult.
    """
    marked, labels = [], dict[str, None]()
    for file in files:
        coco = _read_coco(file_set, file)
        labels |= dict.fromkeys(coco.classes.values())
        objects: dict[Any, list[tuple[str, Seen]]] = {number: [] for number in coco.pictures}
        for row, annotation in enumerate(coco.annotations):
            location = f"{file}: annotation {row}"
            objects_of_picture = objects[_known_id(annotation, "image_id", coco.pictures, location)]
            label = coco.classes[_known_id(annotation, "category_id", coco.classes, location)]
            crowd = bool(annotation.get("iscrowd"))
            corners = _corners(annotation, location)
            objects_of_picture.append((location, Seen(label, corners, crowd)))
        marked += [Marked(name, objects[number]) for number, name in coco.pictures.items()]
    return Boxes(marked, tuple(labels), file_set.shown)


def _read_coco(file_set: FileSet, file: str) -> _Coco:
    """The lists of a file. Raises UserError where it is no JSON of COCO."""
    try:
        content = json.loads(file_set.read(file))
        classes = {one["id"]: str(one["name"]) for one in content["categories"]}
        pictures = {one["id"]: str(one["file_name"]) for one in content["images"]}
        return _Coco(file, classes, pictures, list(content["annotations"]))
    except (ValueError, OSError, KeyError, TypeError) as error:
        why = str(error)
        if isinstance(error, KeyError):
            why = f"no {error}"
        raise UserError(
            f"{file}: expected JSON as of COCO, with images, annotations and categories, got "
            f"another ({why})."
        ) from None


def _known_id(annotation: Any, field: str, known: Collection[Any], location: str) -> Any:
    """An id in an annotation. Raises UserError where it is none of those in the file."""
    got = annotation
    if isinstance(annotation, dict):
        got = annotation.get(field)
        if got in known:
            return got
    raise UserError(
        f"{location}: expected {field} of one of the {len(known)} in the file, got {got!r}."
    )


def _corners(annotation: Mapping[str, Any], location: str) -> tuple[float, float, float, float]:
    """The left, top, right and lower edge of a box. Raises UserError where it is none."""
    try:
        left, top, width, height = (float(value) for value in annotation["bbox"])
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"{location}: expected bbox: [x, y, width, height], got {annotation.get('bbox')!r}. "
            "Correct it."
        ) from None
    return left, top, left + width, top + height


def _of_tables(
    file_set: FileSet, files: Sequence[str], task: TaskColumn, reading: Reading, key: str
) -> Boxes:
    """A row is a box; one with a picture and no class says that nothing is there to be seen."""
    columns = task.columns or COLUMNS
    if len(columns) != len(COLUMNS):
        raise UserError(
            f"{key.rpartition('.')[0]}.columns: expected those of {', '.join(COLUMNS)}, got "
            f"{list(columns)}."
        )
    form: Format = "csv"
    if files[0].lower().endswith(ENDINGS["parquet"]):
        form = "parquet"
    table = open_table(file_set._replace(files=tuple(files)), form, reading, key)
    for name in columns:
        if name not in table.names:
            raise UserError(
                f"{key}: {files[0]}: expected the column '{name}', got {table.names}. Name those "
                f"of {', '.join(COLUMNS)} in {key.rpartition('.')[0]}.columns."
            )
    objects: dict[str, list[tuple[str, Seen]]] = {}
    labels: set[str] = set()
    for block in table.blocks:
        rows = table.read(block)
        for picture, seen in _boxes_in(rows, columns, partial(table.locate_row, block)):
            of_picture = objects.setdefault(picture, [])
            if seen is not None:
                of_picture.append(seen)
                labels.add(seen[1].label)
    marked = [Marked(picture, of_picture) for picture, of_picture in objects.items()]
    return Boxes(marked, in_order(labels), file_set.shown)


def _boxes_in(
    rows: pa.Table, columns: Sequence[str], locate_row: LocateRow
) -> Iterator[tuple[str, tuple[str, Seen] | None]]:
    """The picture of each row and its box, with the row that it stands in; None where a row says
    that nothing is there. Raises UserError for a row that is neither.
    """
    pictures, classes = (texts(rows[name]).to_pylist() for name in columns[:2])
    corners = np.stack([numbers(rows[name], name, locate_row) for name in columns[2:]], 1)
    for row, (picture, label) in enumerate(zip(pictures, classes, strict=True)):
        if picture is None:
            raise UserError(
                f"{locate_row(row)}, column '{columns[0]}': expected the name of a picture, got "
                "none."
            )
        if label is None and np.isnan(corners[row]).all():
            yield picture, None
            continue
        if label is None or not np.isfinite(corners[row]).all():
            raise UserError(
                f"{locate_row(row)}: expected a class and four finite numbers, got {label!r}, "
                f"{corners[row].tolist()}."
            )
        x1, y1, x2, y2 = corners[row].tolist()
        yield picture, (locate_row(row), Seen(label, (x1, y1, x2, y2)))


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
