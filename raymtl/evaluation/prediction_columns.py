"""The columns of predictions.parquet for each task, depending on the form of its labels."""

from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from raymtl.evaluation.image_resize import ImageResize, box_in_original, map_in_original
from raymtl.evaluation.prediction import Prediction
from raymtl.tasks import MapKind
from raymtl.types import LabelForm

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


def _where_labelled(prediction: Prediction, values: list[object], kind: pa.DataType) -> pa.Array:
    return pa.array(_masked(values, prediction.is_labelled), kind)


def _masked(values: Iterable[object], mask: np.ndarray) -> list[object]:
    """The values, with None where the mask is False."""
    masked: list[object] = []
    for value, is_known in zip(values, mask, strict=True):
        if is_known:
            masked.append(value)
        else:
            masked.append(None)
    return masked


def _decoded(prediction: Prediction) -> dict[str, Tensor | None]:
    """The predictions before and after adaptation, in float64, as a person reads them."""
    decode = prediction.task.decode
    before = None
    if prediction.before is not None:
        before = decode(prediction.before.double())
    return {"before": before, "after": decode(prediction.after.double())}


def _of_classes(
    prediction: Prediction, shapes: np.ndarray | None, resize: ImageResize | None
) -> Columns:
    """The class by its name, and a probability for each."""
    name, number = prediction.task.name, len(prediction.after)
    targets = _class_labels(prediction, prediction.target, prediction.is_labelled)
    columns: Columns = {f"{name}.target": targets}
    decoded = _decoded(prediction)
    for when, values in decoded.items():
        columns[f"{name}.{when}"] = _class_labels(prediction, values, np.ones(number, bool))
    probabilities = _probabilities(prediction)
    after = decoded["after"]
    assert after is not None
    of_decided = np.take_along_axis(probabilities, after.numpy()[:, None], 1)[:, 0]
    columns[f"{name}.probability"] = pa.array(of_decided, pa.float64())
    for label, column in zip(prediction.classes, probabilities.T, strict=False):
        columns[f"{name}.probability.{label}"] = pa.array(column, pa.float64())
    return columns


def _class_labels(prediction: Prediction, classes: Tensor | None, mask: np.ndarray) -> pa.Array:
    """The class of each row; null where the mask is False, and for a class without a name, of which
    an episode may have fewer than the task.
    """
    kind = pa.int64()
    if prediction.has_names:
        kind = pa.string()
    if classes is None:
        return pa.nulls(len(prediction.after), kind)
    numbers = np.where(mask, classes.numpy(), 0).astype(np.int64)  # nan where there is no label
    if not prediction.has_names:
        return pa.array(numbers, kind, mask=~mask)
    is_named = mask & (numbers < len(prediction.classes))
    return pa.array(prediction.classes, kind).take(pa.array(numbers, mask=~is_named))


def _probabilities(prediction: Prediction) -> np.ndarray:
    """[N, classes]"""
    found: np.ndarray = prediction.task.kind.probabilities(prediction.after.double()).numpy()
    return found


def _of_labels(
    prediction: Prediction, shapes: np.ndarray | None, resize: ImageResize | None
) -> Columns:
    """The names of the labels that apply; for each label whether it applies, which may be unknown,
    and its probability.
    """
    name, number = prediction.task.name, len(prediction.after)
    kind = pa.list_(pa.string())

    def names(flags: Tensor | None) -> list[object]:
        if flags is None:
            return [None] * number
        labels = np.array(prediction.classes, dtype=object)
        return [labels[row == 1].tolist() for row in flags.numpy()]

    columns: Columns = {
        f"{name}.target": _where_labelled(prediction, names(prediction.target), kind)
    }
    for when, values in _decoded(prediction).items():
        columns[f"{name}.{when}"] = pa.array(names(values), kind)
    if prediction.target is None:
        truth = torch.full((number, len(prediction.classes)), torch.nan)
    else:
        truth = prediction.target.double()
    likely = prediction.after.double().sigmoid()
    for place, label in enumerate(prediction.classes):
        own = truth[:, place].numpy()
        is_labelled = prediction.is_labelled & ~np.isnan(own)
        columns[f"{name}.target.{label}"] = pa.array(own == 1, pa.bool_(), mask=~is_labelled)
        columns[f"{name}.probability.{label}"] = pa.array(likely[:, place].numpy(), pa.float64())
    return columns


def _of_numbers(
    prediction: Prediction, shapes: np.ndarray | None, resize: ImageResize | None
) -> Columns:
    """A number, or a vector as a list, in the unit of the file."""
    name = prediction.task.name
    columns: Columns = {f"{name}.target": _numbers_of_labels(prediction)}
    for when, values in _decoded(prediction).items():
        columns[f"{name}.{when}"] = _numbers(prediction, values)
    return columns


def _numbers(prediction: Prediction, values: Tensor | None) -> pa.Array:
    """Numbers or vectors; nulls for None."""
    kind: pa.DataType = pa.float64()
    if prediction.task.target_shape:
        kind = pa.list_(kind)
    if values is None:
        return pa.nulls(len(prediction.after), kind)
    if prediction.task.target_shape:
        return pa.array(values.double().tolist(), kind)
    return pa.array(values.double().numpy(), kind)


def _numbers_of_labels(prediction: Prediction) -> pa.Array:
    """The labels; null where there is none."""
    if prediction.target is None or not prediction.is_labelled.any():
        return _numbers(prediction, None)
    if not prediction.task.target_shape:
        values = prediction.target.double().numpy()
        return pa.array(values, pa.float64(), mask=~prediction.is_labelled)
    labels = _without_nan(prediction.target.double().tolist())
    return _where_labelled(prediction, labels, pa.list_(pa.float64()))


def _without_nan(values: list[object]) -> list[object]:
    """The values, with None for the components of vectors that are missing."""
    without: list[object] = []
    for value in values:
        if isinstance(value, list):
            without.append(_masked(value, ~np.isnan(value)))
        else:
            without.append(value)
    return without


def _of_maps(
    prediction: Prediction, shapes: np.ndarray | None, resize: ImageResize | None
) -> Columns:
    """Row-major lists with their shapes beside them, as large as the original pictures."""
    name, number = prediction.task.name, len(prediction.after)
    kind = prediction.task.kind
    assert isinstance(kind, MapKind)
    dtype = pa.float32()
    if kind.has_integer_targets:
        dtype = pa.int32()
    columns: Columns = {}
    for when, values in {"target": prediction.target, **_decoded(prediction)}.items():
        lists: list[np.ndarray | None] = [None] * number
        map_shapes: list[list[int] | None] = [None] * number
        for row in _rows_with_value(prediction, when, values):
            assert values is not None
            value = values[row].numpy()
            if kind.has_integer_targets:
                value = _in_values(prediction, value)
            shape = _shape_of(shapes, row)
            if shape is not None and resize is not None:
                value = map_in_original(value, shape, resize, nothing=kind.missing_value)
            lists[row] = value.astype(dtype.to_pandas_dtype()).ravel()
            map_shapes[row] = list(value.shape)
        columns[f"{name}.{when}"] = pa.array(lists, pa.list_(dtype))
        columns[f"{name}.{when}.shape"] = pa.array(map_shapes, pa.list_(pa.int64()))
    if kind.has_integer_targets:
        columns[f"{name}.classes"] = _legend(prediction)
    return columns


def _rows_with_value(prediction: Prediction, when: str, values: Tensor | None) -> Iterator[int]:
    """The rows for which there is a prediction, or a label where `when` is `target`."""
    if values is None:
        return
    for row in range(len(prediction.after)):
        if when != "target" or prediction.is_labelled[row]:
            yield row


def _shape_of(shapes: np.ndarray | None, row: int) -> tuple[int, int] | None:
    if shapes is None:
        return None
    return int(shapes[row, 0]), int(shapes[row, 1])


def _legend(prediction: Prediction) -> pa.Array:
    """The value that stands for each class in a map; the same list for every row."""
    numbers = prediction.values or tuple(range(len(prediction.classes)))
    legend = [
        {"value": value, "class": label}
        for value, label in zip(numbers, prediction.classes, strict=False)
    ]
    entries = pa.list_(pa.struct([("value", pa.int32()), ("class", pa.string())]))
    return pa.array([legend] * len(prediction.after), entries)


def _in_values(prediction: Prediction, classes: np.ndarray) -> np.ndarray:
    """The numbers that stand for these classes in the user's own maps; -1 where nothing is said."""
    if not prediction.values:
        return classes
    values = np.array([*prediction.values, -1])  # the class -1 is the last
    found: np.ndarray = values[classes.astype(np.int64).clip(min=-1)]
    return found


def _of_boxes(
    prediction: Prediction, shapes: np.ndarray | None, resize: ImageResize | None
) -> Columns:
    """Boxes with their classes and scores, in the pixels of the original pictures."""
    name, number = prediction.task.name, len(prediction.after)
    columns: Columns = {}
    for when, values in {"target": prediction.target, **_decoded(prediction)}.items():
        lists: list[object] = [None] * number
        for row in _rows_with_value(prediction, when, values):
            assert values is not None
            boxes = values[row].double().numpy()
            lists[row] = _boxes(prediction, boxes, _shape_of(shapes, row), resize)
        columns[f"{name}.{when}"] = pa.array(lists, pa.list_(BOX))
    return columns


def _boxes(
    prediction: Prediction,
    rows: np.ndarray,
    shape: tuple[int, int] | None,
    resize: ImageResize | None,
) -> list[dict[str, object]]:
    """The boxes of one picture, of rows [M, 5 or 6]: class, corners and, for predictions, the
    score; a row of class -1 is no box.
    """
    boxes = []
    for label, *numbers in rows[rows[:, 0] != -1].tolist():
        corners = np.array(numbers[:4])
        if shape is not None and resize is not None:
            corners = box_in_original(corners, shape, resize)
        difficult = label <= IGNORED
        class_number = int(label)
        if difficult:
            class_number = IGNORED - class_number
        box: dict[str, object] = {"class": prediction.classes[class_number], "score": None}
        box["difficult"] = difficult
        box |= zip(("x1", "y1", "x2", "y2"), corners.tolist(), strict=True)
        if len(numbers) > 4:
            box["score"] = numbers[4]
        boxes.append(box)
    return boxes


COLUMNS: Mapping[
    LabelForm, Callable[[Prediction, np.ndarray | None, ImageResize | None], Columns]
] = {
    "class": _of_classes,
    "set": _of_labels,
    "number": _of_numbers,
    "map": _of_maps,
    "boxes": _of_boxes,
}
