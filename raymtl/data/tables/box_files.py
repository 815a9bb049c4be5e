"""Files of boxes: a folder of Pascal VOC's XML, COCO's JSON, or a table."""

import json
import posixpath
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from raymtl.data.formats.voc_xml import Seen, read_xml
from raymtl.data.tables.blocks import Reading
from raymtl.data.tables.boxes import Boxes, Marked
from raymtl.data.tables.columns import LocateRow, in_order, numbers, texts
from raymtl.data.tables.paths import ENDINGS, FileSet
from raymtl.data.tables.readers import open_table
from raymtl.data.tables.schema import Format, TaskColumn
from raymtl.types import UserError

COLUMNS = ("picture", "class", "x1", "y1", "x2", "y2")
"""Of a table of boxes, unless `columns` gives others in this order."""
XML, JSON = ".xml", ".json"


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
