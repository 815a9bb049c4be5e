"""Labels that are maps, with a value for every pixel: decoded, checked and resized with their
pictures.
"""

import io
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch

from raymtl.data.tables.decode import picture_of
from raymtl.data.tables.pictures import Resize, fitted_into
from raymtl.data.tables.schema import FittedTask, TaskColumn
from raymtl.tasks.depth import DEPTH
from raymtl.tasks.kinds import MAP_KINDS
from raymtl.tasks.maps import MapKind, flat, is_colour, packed, vectors
from raymtl.tasks.normals import NORMALS
from raymtl.tasks.segmentation import SEGMENTATION
from raymtl.types import TaskKind, UserError

MOST_FITTED = 2000
"""Maps that classes and statistics are found in, evenly spaced through the rows for training."""
LOOKED_AT = 16  # maps, for what kind they are
FEW = 64  # values in them, which are then classes
NUMPY = b"\x93NUMPY"


class UnreadMap(NamedTuple):
    """A map that has not been read yet. `read` raises OSError for what is none."""

    name: str
    """Of its file, or the file and the row that it stands in."""
    read: Callable[[], np.ndarray]


UnreadMaps = Sequence[UnreadMap | None]
"""Of every row; None where there is no label."""


def array_of(content: bytes) -> np.ndarray:
    """The numbers in a picture or .npy file, [H, W] or [H, W, C]. Palettes give the numbers of
    their colours.

    Raises OSError.
    """
    if content.startswith(NUMPY):
        try:
            array: np.ndarray = np.load(io.BytesIO(content), allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise OSError(str(error)) from None
        return array
    picture = picture_of(content)
    if picture.mode in ("LA", "PA", "La", "RGBA", "RGBa", "RGBX"):
        values = np.asarray(picture)[..., :-1]
    elif picture.mode in ("1", "L", "P", "I", "I;16", "I;16B", "F", "RGB"):
        values = np.asarray(picture)
    else:
        values = np.asarray(picture.convert("RGB"))
    if values.ndim == 3 and values.shape[-1] == 1:
        values = values[..., 0]
    if values.dtype == bool:
        return values.astype(np.uint8)
    return values


def array_of_lists(value: Any) -> np.ndarray:
    """The numbers in lists of lists. Raises OSError where these are not of one length."""
    try:
        return np.array(value, np.float64)
    except (ValueError, TypeError):
        raise OSError("lists of different lengths, or of something else than numbers") from None


class _Maps:
    """Maps for training, as a kind is fitted on them."""

    def __init__(self, cells: Sequence[UnreadMap]) -> None:
        self._cells = cells

    @property
    def first(self) -> str:
        return self._cells[0].name

    def __len__(self) -> int:
        return len(self._cells)

    def read(self, take: Callable[[str, np.ndarray], Any]) -> list[Any]:
        """What is taken of each map; those that cannot be read are reported when all are read."""

        def of_cell(cell: UnreadMap) -> Any:
            try:
                return take(cell.name, cell.read())
            except OSError:
                return None

        with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as threads:
            return [taken for taken in threads.map(of_cell, self._cells) if taken is not None]


def fit_maps(name: str, column: TaskColumn, cells: UnreadMaps, train: np.ndarray) -> FittedTask:
    """What the maps are: kind, classes and what stands for them, mean and spread, from rows for
    training [N] alone.

    Raises UserError for maps of no clear kind and for a task without any.
    """
    key = f"data.tasks.{name}"
    rows = np.flatnonzero(train).tolist()
    known = [cell for cell in (cells[row] for row in rows) if cell is not None]
    if not known:
        raise UserError(
            f"{key}: expected maps in the rows for training, got none in {len(rows)} rows. Correct "
            "the names of the files (or data.tasks.*.path, where they lie), or leave the task away."
        )
    numbers = np.unique(np.linspace(0, len(known) - 1, MOST_FITTED).astype(int)).tolist()
    chosen = [known[number] for number in numbers]
    kind = column.task_kind
    if kind is None:
        kind = _inferred(name, chosen[:: max(1, len(chosen) // LOOKED_AT)])
    assert isinstance(kind, MapKind)
    _check_keys(key, column, kind)
    return FittedTask(
        asked=column,
        kind=kind.name,
        inferred=column.task_kind is None,
        labelled=len(known) / len(rows),
        **kind.fit(name, column, _Maps(chosen)),
    )


def _check_keys(key: str, column: TaskColumn, kind: MapKind) -> None:
    """Raises UserError for keys that other kinds of maps take."""
    if column.columns:
        raise UserError(
            f"{key}.columns: expected one column of kind {kind}, got {list(column.columns)}. Use "
            "`column`."
        )
    for other in MAP_KINDS:
        for setting in other.settings:
            given = getattr(column, setting)
            if given is None or setting in kind.settings:
                continue
            if isinstance(given, float):
                got = f"{given:g}"
            else:
                got = "one"
            raise UserError(
                f"{key}.{setting}: expected none of kind {kind}, got {got}. It is for kind: "
                f"{other}."
            )


def _inferred(name: str, cells: Sequence[UnreadMap]) -> MapKind:
    """The kind by how the maps look: directions, a few colours or whole numbers, or others."""
    arrays = _Maps(cells).read(lambda _, values: values)
    key = f"data.tasks.{name}.kind"
    if not arrays:
        raise UserError(
            f"{key}: {cells[0].name}: expected maps, got files that cannot be read. Correct them."
        )
    if any(_has_channels(values) for values in arrays):
        return _inferred_of_channels(key, cells[0].name, arrays)
    arrays = [flat(values, cells[0].name) for values in arrays]
    different = np.unique(np.concatenate([np.unique(values) for values in arrays]))
    if len(different) <= FEW and not (different % 1 > 0).any():
        return SEGMENTATION
    if any(values.dtype != np.uint8 for values in arrays):
        return DEPTH
    raise UserError(
        f"{key}: {cells[0].name}: expected to see of what kind the maps are, got {len(different)} "
        f"different greys. Say {key}: segmentation, depth or normals."
    )


def _has_channels(values: np.ndarray) -> bool:
    """Whether it is in colours, or has three numbers a pixel that are no bytes."""
    three = values.ndim == 3 and 3 in (values.shape[0], values.shape[-1])
    return is_colour(values) or (three and values.dtype != np.uint8)


def _inferred_of_channels(key: str, map_name: str, arrays: Sequence[np.ndarray]) -> MapKind:
    lengths = [np.linalg.norm(vectors(values, map_name), axis=0).ravel() for values in arrays]
    known = np.concatenate(lengths)
    known = known[known > 0]
    if np.mean(np.abs(known - 1) < 0.1) > 0.5:
        return NORMALS
    if all(values.dtype == np.uint8 for values in arrays):
        colours: set[int] = set()
        for values in arrays:
            colours |= set(np.unique(packed(values)).tolist())
        if len(colours) <= FEW:
            return SEGMENTATION
    raise UserError(
        f"{key}: {map_name}: expected maps with a number or one of a few colours a pixel, "
        f"or directions, got others. Save classes as grey numbers, a palette or {FEW} colours "
        "at most, or as .npy."
    )


class MapTarget(NamedTuple):
    """What maps are encoded for: the size of the inputs, and how pictures are brought to it."""

    size: tuple[int, int]
    resize: Resize


def encode_maps(
    name: str,
    fitted: FittedTask,
    column: str | None,
    cells: UnreadMaps,
    shapes: np.ndarray,
    target: MapTarget,
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Targets as the task takes them, of the target's size; where they are, [N] bool; and the maps
    that cannot be read.

    `shapes` [N, 2] are height and width of the pictures, 0 where there is none: a map is resized
    and cropped as its picture is, by the nearest pixel. Classes are int16 with -1 where there is
    none, depths float32 and normals float16. Raises UserError, naming the map, for a number outside
    the classes and for one of another proportion.
    """
    kind = fitted.task_kind
    assert isinstance(kind, MapKind)
    out = np.zeros((len(cells), *kind.channels, *target.size), kind.dtype)
    mask = np.zeros(len(cells), bool)

    def fill(row: int) -> str | None:
        cell = cells[row]
        if cell is None or not shapes[row].all():
            return None
        shown = cell.name
        if column is not None:
            shown = f"{cell.name}, column '{column}'"
        try:
            values = kind.encode(name, fitted, cell.read(), shown)
        except OSError as error:
            return f"{cell.name} ({' '.join(str(error).split())[:80] or type(error).__name__})"
        _check_shape(values.shape[-2:], tuple(shapes[row].tolist()), shown)
        out[row] = _resized(values, target)
        mask[row] = True
        return None

    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as threads:
        unreadable = [fault for fault in threads.map(fill, range(len(cells))) if fault]
    return out, mask, unreadable


def _resized(values: np.ndarray, target: MapTarget) -> np.ndarray:
    """A map [H, W] or [C, H, W] brought to the size of the inputs, by the nearest pixel."""
    channels = values
    if values.ndim == 2:
        channels = values[None]
    tensor = torch.from_numpy(channels)
    resized: np.ndarray = fitted_into(tensor, target.size, target.resize, nearest=True).numpy()
    return resized.reshape(*values.shape[:-2], *target.size)


def _check_shape(map_shape: Sequence[int], picture: Sequence[int], shown: str) -> None:
    (height, width), (tall, wide) = map_shape, picture
    if abs(width - wide * height / tall) > 1 and abs(height - tall * width / wide) > 1:
        raise UserError(
            f"{shown}: expected a map of the proportion of its picture, {tall} x {wide} pixels, "
            f"got {height} x {width}. Give each picture its own map."
        )


def bytes_a_row(kind: TaskKind | None, size: tuple[int, int]) -> int:
    """What a map takes in memory; of a kind that is not known yet, what a depth does."""
    if kind is None:
        kind = DEPTH
    assert isinstance(kind, MapKind)
    return kind.num_bytes(size)
