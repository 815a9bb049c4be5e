"""Labels that are maps, with a value for every pixel: decoded, checked and resized with their
pictures.
"""

import io
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch

from raymtl.data.tables.decode import picture_of
from raymtl.data.tables.pictures import Resize, fitted_into
from raymtl.data.tables.schema import FittedTask, KindName, TaskColumn
from raymtl.types import UserError

DENSE: tuple[KindName, ...] = ("segmentation", "depth", "normals")
MOST_FITTED = 2000
"""Maps that classes and statistics are found in, evenly spaced through the rows for training."""
LOOKED_AT = 16  # maps, for what kind they are
FEW = 64  # values in them, which are then classes
NOTHING = 255
"""What most maps of classes have where there is no label; a class where only one other value is
there.
"""
SMALL = (
    100  # values below it are numbers of classes; larger ones could be greys that stand for them
)
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
            found: np.ndarray = np.load(io.BytesIO(content), allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise OSError(str(error)) from None
        return found
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


def _is_colour(values: np.ndarray) -> bool:
    """Whether it is a picture of more than greys."""
    several = values.ndim == 3 and values.shape[-1] == 3 and values.dtype == np.uint8
    return several and not bool((values == values[..., :1]).all())


def _packed(values: np.ndarray) -> np.ndarray:
    """Colours [H, W, 3] as the numbers that six hexadecimal digits write, [H, W] int64; greys [H,
    W] as such too.
    """
    red, green, blue = np.moveaxis(
        np.broadcast_to(values.reshape(*values.shape[:2], -1), (*values.shape[:2], 3)), -1, 0
    )
    return red.astype(np.int64) << 16 | green.astype(np.int64) << 8 | blue


def array_of_lists(value: Any) -> np.ndarray:
    """The numbers in lists of lists. Raises OSError where these are not of one length."""
    try:
        return np.array(value, np.float64)
    except (ValueError, TypeError):
        raise OSError("lists of different lengths, or of something else than numbers") from None


def is_dense(kind: KindName | None) -> bool:
    """Whether labels of this kind are maps."""
    return kind in DENSE


def fit_maps(name: str, asked: TaskColumn, cells: UnreadMaps, train: np.ndarray) -> FittedTask:
    """What the maps are: kind, classes and what stands for them, mean and spread, from rows for
    training [N] alone.

    Raises UserError for maps of no clear kind and for a task without any.
    """
    key = f"data.tasks.{name}"
    own = [cells[row] for row in np.flatnonzero(train).tolist()]
    known = [cell for cell in own if cell is not None]
    if not known:
        raise UserError(
            f"{key}: expected maps in the rows for training, got none in {len(own)} rows. Correct "
            "the names of the files (or data.tasks.*.path, where they lie), or leave the task away."
        )
    chosen = [
        known[i]
        for i in np.unique(np.linspace(0, len(known) - 1, MOST_FITTED).astype(int)).tolist()
    ]
    kind = asked.kind or _inferred(name, chosen[:: max(1, len(chosen) // LOOKED_AT)])
    _check_keys(key, asked, kind)
    found: dict[str, Any] = {}
    if kind == "segmentation":
        found = _classes(name, asked, chosen)
    elif kind == "depth":
        found = _moments(name, asked, chosen)
    labelled = len(known) / len(own)
    return FittedTask(
        asked=asked, kind=kind, inferred=asked.kind is None, labelled=labelled, **found
    )


def _check_keys(key: str, asked: TaskColumn, kind: KindName) -> None:
    if asked.columns:
        raise UserError(
            f"{key}.columns: expected one column of kind {kind}, got {list(asked.columns)}. Use "
            "`column`."
        )
    for field in ("classes", "values", "ignore"):
        if getattr(asked, field) is not None and kind != "segmentation":
            raise UserError(
                f"{key}.{field}: expected none of kind {kind}, got one. It is for kind: "
                "segmentation."
            )
    if asked.scale is not None and kind != "depth":
        raise UserError(
            f"{key}.scale: expected none of kind {kind}, got {asked.scale:g}. It is for kind: "
            "depth."
        )


def _read(cells: Sequence[UnreadMap], take: Callable[[UnreadMap, np.ndarray], Any]) -> list[Any]:
    """What is taken of each map; those that cannot be read are told when all are."""

    def one(cell: UnreadMap) -> Any:
        try:
            return take(cell, cell.read())
        except OSError:
            return None

    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as threads:
        return [taken for taken in threads.map(one, cells) if taken is not None]


def _inferred(name: str, cells: Sequence[UnreadMap]) -> KindName:
    arrays = _read(cells, lambda cell, values: values)
    key = f"data.tasks.{name}.kind"
    if not arrays:
        raise UserError(
            f"{key}: {cells[0].name}: expected maps, got files that cannot be read. Correct them."
        )
    if any(
        _is_colour(v) or (v.ndim == 3 and 3 in (v.shape[0], v.shape[-1]) and v.dtype != np.uint8)
        for v in arrays
    ):
        lengths = np.concatenate(
            [np.linalg.norm(_unscaled(v, cells[0].name), axis=0).ravel() for v in arrays]
        )
        if np.mean(np.abs(lengths[lengths > 0] - 1) < 0.1) > 0.5:
            return "normals"
        if (
            all(v.dtype == np.uint8 for v in arrays)
            and len({n for v in arrays for n in np.unique(_packed(v))}) <= FEW
        ):
            return "segmentation"
        raise UserError(
            f"{key}: {cells[0].name}: expected maps with a number or one of a few colours a pixel, "
            f"or directions, got others. Save classes as grey numbers, a palette or {FEW} colours "
            "at most, or as .npy."
        )
    arrays = [_flat(values, cells[0].name) for values in arrays]
    different = np.unique(np.concatenate([np.unique(values) for values in arrays]))
    if len(different) <= FEW and not (different % 1 > 0).any():
        return "segmentation"
    if any(values.dtype != np.uint8 for values in arrays):
        return "depth"
    raise UserError(
        f"{key}: {cells[0].name}: expected to see of what kind the maps are, got {len(different)} "
        f"different greys. Say data.tasks.{name}.kind: segmentation, depth or normals."
    )


def _flat(values: np.ndarray, name: str) -> np.ndarray:
    """[H, W] out of that, [H, W, 1], [1, H, W] or the same grey three times. Raises UserError."""
    if (
        values.ndim == 3
        and values.shape[-1] == 3
        and values.dtype == np.uint8
        and not _is_colour(values)
    ):
        values = values[..., 0]
    if values.ndim == 3 and 1 in (values.shape[0], values.shape[-1]):
        if values.shape[0] == 1:
            values = values[0]
        else:
            values = values[..., 0]
    if values.ndim != 2 or not values.size:
        if values.ndim == 3 and values.dtype == np.uint8:
            got = "colours"
        else:
            got = f"an array of shape {values.shape}"
        raise UserError(
            f"{name}: expected a number for every pixel, got {got}. Save it as grey numbers or as "
            ".npy."
        )
    return values


def _vectors(values: np.ndarray, name: str) -> np.ndarray:
    """[3, H, W] float32 of length 1, or 0 where there is none.

    Colours stand for -1 at 0 to 1 at 255; those that are no direction, such as black and the grey
    of 127, for none.
    """
    vectors = _unscaled(values, name)
    lengths = np.linalg.norm(vectors, axis=0)
    if values.dtype == np.uint8:
        there = (lengths > 0.5) & (lengths < 1.5)
    else:
        there = lengths > 0
    found: np.ndarray = np.where(there, vectors / np.where(there, lengths, 1), 0)
    return found


def _unscaled(values: np.ndarray, name: str) -> np.ndarray:
    """[3, H, W] float32, of the length that they have, from arrays in that order or in [H, W, 3].
    Raises UserError.
    """
    if values.ndim == 2 and values.dtype == np.uint8:  # nothing but greys
        values = np.repeat(values[..., None], 3, -1)
    if values.ndim != 3 or 3 not in (values.shape[0], values.shape[-1]):
        raise UserError(
            f"{name}: expected three numbers for every pixel, got an array of shape {values.shape}."
        )
    if values.shape[-1] == 3:
        values = np.moveaxis(values, -1, 0)
    numbers: np.ndarray = values.astype(np.float32)
    if values.dtype == np.uint8:
        return numbers / 127.5 - 1
    return np.nan_to_num(numbers)


def _depths(values: np.ndarray, scale: float, name: str) -> np.ndarray:
    """[H, W] float32 in the unit that `scale` gives; 0 where the number is 0, negative, infinite or
    none.
    """
    flat = _flat(values, name).astype(np.float32) * np.float32(scale)
    return np.where(np.isfinite(flat) & (flat > 0), flat, np.float32(0))


def _numbers(values: np.ndarray, name: str, colours: bool = False) -> np.ndarray:
    """[H, W] int64, -1 where there is none; of `colours` packed ones. Raises UserError for what is
    no whole number.
    """
    if colours and values.dtype == np.uint8 and (values.ndim == 2 or values.shape[-1] == 3):
        return _packed(values)
    flat = _flat(values, name)
    if not np.issubdtype(flat.dtype, np.floating):
        return flat.astype(np.int64)
    whole = np.where(np.isnan(flat), -1, flat)
    odd = whole[(whole != np.round(whole)) | (np.abs(whole) > 2**31)]
    if odd.size:
        raise UserError(
            f"{name}: expected whole numbers, those of classes, got {float(odd[0]):g}. Correct the "
            "map."
        )
    return whole.astype(np.int64)


def _classes(name: str, asked: TaskColumn, cells: Sequence[UnreadMap]) -> dict[str, Any]:
    """Names and numbers of classes, and the numbers that say nothing."""
    key = f"data.tasks.{name}"
    names = [str(value) for value in asked.classes or ()]
    if len(set(names)) < len(names):
        raise UserError(f"{key}.classes: expected every class once, got {names}.")
    seen = _read(cells, _seen)
    colours = any(colour for colour, _, _ in seen)
    there = sorted(
        {n for _, greys, packed in seen for n in (packed if colours else greys) if n >= 0}
    )
    given: tuple[int, ...] = ()
    if isinstance(asked.ignore, int):
        given = (asked.ignore,)
    elif asked.ignore is not None:
        given = tuple(asked.ignore)
    values = asked.values
    if values is None and names and colours:
        raise UserError(
            f"{key}.values: {cells[0].name}: expected the colours that stand for {names}, such as "
            "0xFF0000, in their order, got none, and in the maps "
            f"{[f'#{number:06x}' for number in there[:12]]}. Say them."
        )
    if values is None and names:
        whole = all(
            isinstance(value, int) and not isinstance(value, bool) for value in asked.classes or ()
        )
        if whole:
            values = tuple(int(text) for text in names)
        else:
            values = _in_turn(there, len(names))
    ignored = given
    if asked.ignore is None and not colours and NOTHING in there and NOTHING not in (values or ()):
        others = [number for number in there if number != NOTHING]
        if values is not None or (len(others) > 1 and others[-1] < max(SMALL, 2 * len(others))):
            ignored = (NOTHING,)
    if values is None:
        values = tuple(number for number in there if number not in ignored)
    names = names or [f"#{number:06x}" if colours else str(number) for number in values]
    if len(names) != len(values) or len(set(values)) < len(values) or set(values) & set(ignored):
        raise UserError(
            f"{key}.values: expected a number of its own for each of {len(names)} classes, none of "
            f"them ignored, got {list(values)} (ignored: {list(ignored)})."
        )
    if len(values) < 2:
        raise UserError(
            f"{key}: {cells[0].name}: expected maps of two classes at least, got {list(values)} in "
            f"{len(cells)} maps (ignored: {list(ignored)}). Correct the maps, or say "
            f"data.tasks.{name}.classes."
        )
    return {"classes": tuple(names), "values": values, "ignored": ignored, "colours": colours}


def _seen(cell: UnreadMap, values: np.ndarray) -> tuple[bool, list[int], list[int]]:
    """Whether it is in colours, and the numbers in it: as greys, which colours are not, and as
    packed colours.
    """
    if _is_colour(values):
        return True, [], np.unique(_packed(values)).tolist()
    if values.dtype == np.uint8 or values.dtype == np.uint16:
        greys = np.flatnonzero(np.bincount(_flat(values, cell.name).ravel())).tolist()
    else:
        greys = np.unique(_numbers(values, cell.name)).tolist()
    return False, greys, [grey * 0x010101 for grey in greys]


def _in_turn(there: Sequence[int], number: int) -> tuple[int, ...]:
    """What so many named classes stand for: 0, 1, 2 ...; or the numbers found, such as 0 and 255,
    where it is these.
    """
    usual = set(range(number))
    if len(usual & {*there} - {NOTHING}) < 2 and not {*there} <= usual and len(there) == number:
        return tuple(there)
    return tuple(range(number))


def _moments(name: str, asked: TaskColumn, cells: Sequence[UnreadMap]) -> dict[str, Any]:
    """Mean and spread over all pixels that have a depth."""

    def take(cell: UnreadMap, values: np.ndarray) -> tuple[int, float, float] | None:
        depths = _depths(values, asked.scale or 1.0, cell.name)
        there = depths[depths > 0].astype(np.float64)
        if len(there):
            return (len(there), float(there.mean()), float(there.var()))
        return None

    parts = np.array(_read(cells, take)).reshape(-1, 3)
    if not len(parts):
        raise UserError(
            f"data.tasks.{name}: {cells[0].name}: expected depths above 0 in the maps for "
            f"training, got none in {len(cells)}. Correct the maps, or leave the task away."
        )
    share = parts[:, 0] / parts[:, 0].sum()
    mean = float(share @ parts[:, 1])
    std = float((share @ (parts[:, 2] + (parts[:, 1] - mean) ** 2)) ** 0.5)
    return {"means": (mean,), "stds": (std or 1.0,)}


def encode_maps(
    name: str,
    fitted: FittedTask,
    column: str | None,
    cells: UnreadMaps,
    shapes: np.ndarray,
    size: tuple[int, int],
    resize: Resize,
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Targets as the task takes them, of `size`; where they are, [N] bool; and the maps that cannot
    be read.

    `shapes` [N, 2] are height and width of the pictures, 0 where there is none: a map is resized
    and cropped as its picture is, by the nearest pixel. Classes are int16 with -1 where there is
    none, depths float32 and normals float16. Raises UserError, naming the map, for a number outside
    the classes and for one of another proportion.
    """
    encode = ENCODE[fitted.kind]
    parts = (3,) if fitted.kind == "normals" else ()
    out = np.zeros((len(cells), *parts, *size), TYPES[fitted.kind])
    mask = np.zeros(len(cells), bool)

    def fill(row: int) -> str | None:
        cell = cells[row]
        if cell is None or not shapes[row].all():
            return None
        if column is None:
            shown = cell.name
        else:
            shown = f"{cell.name}, column '{column}'"
        try:
            values = encode(name, fitted, cell.read(), shown)
        except OSError as error:
            return f"{cell.name} ({' '.join(str(error).split())[:80] or type(error).__name__})"
        _check_shape(values.shape[-2:], tuple(shapes[row].tolist()), shown)
        tensor = torch.from_numpy(values if values.ndim == 3 else values[None])
        placed = fitted_into(tensor, size, resize, nearest=True).numpy()
        if values.ndim == 3:
            out[row] = placed
        else:
            out[row] = placed[0]
        mask[row] = True
        return None

    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as threads:
        algorithms = [algorithm for algorithm in threads.map(fill, range(len(cells))) if algorithm]
    return out, mask, algorithms


def _check_shape(own: Sequence[int], picture: Sequence[int], shown: str) -> None:
    (height, width), (tall, wide) = own, picture
    if abs(width - wide * height / tall) > 1 and abs(height - tall * width / wide) > 1:
        raise UserError(
            f"{shown}: expected a map of the proportion of its picture, {tall} x {wide} pixels, "
            f"got {height} x {width}. Give each picture its own map."
        )


def _encode_segmentation(
    name: str, fitted: FittedTask, values: np.ndarray, shown: str
) -> np.ndarray:
    numbers = _numbers(values, shown, fitted.colours)
    order = np.argsort(fitted.values)
    known = np.array(fitted.values)[order]
    place = np.searchsorted(known, numbers).clip(max=len(known) - 1)
    found = known[place] == numbers
    nothing = (numbers < 0) | np.isin(numbers, fitted.ignored)
    odd = numbers[~(found | nothing)]
    if odd.size:
        write = "#{:06x}" if fitted.colours else "{}"
        listed = [write.format(value) for value in sorted(fitted.values)]
        raise UserError(
            f"{shown}: expected a class of task '{name}' in every pixel, one of "
            f"{', '.join(listed[:12])}{' ...' if len(listed) > 12 else ''}, got "
            f"{write.format(odd[0])} in {odd.size} pixels. Correct the map, or name it in "
            f"data.tasks.{name}.values or .ignore."
        )
    return np.where(nothing, -1, order[place]).astype(np.int16)


ENCODE: Mapping[KindName, Callable[[str, FittedTask, np.ndarray, str], np.ndarray]] = {
    "segmentation": _encode_segmentation,
    "depth": lambda name, fitted, values, shown: _depths(values, fitted.asked.scale or 1.0, shown),
    "normals": lambda name, fitted, values, shown: _vectors(values, shown),
}
TYPES: Mapping[KindName, type] = {
    "segmentation": np.int16,
    "depth": np.float32,
    "normals": np.float16,
}


def bytes_a_row(kind: KindName | None, size: tuple[int, int]) -> int:
    """What a map takes in memory; of a kind that is not known yet, what a depth does."""
    if kind == "normals":
        parts = 3
    else:
        parts = 1
    return (
        parts * size[0] * size[1] * np.dtype(np.float32 if kind is None else TYPES[kind]).itemsize
    )
