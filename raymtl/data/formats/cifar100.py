"""The files of CIFAR-100 as torchvision lays them out, read whatever their md5 sums are."""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from raymtl.data.formats.pickled import unpickled
from raymtl.types import UserError

SIDE = 32  # pixels
FOLDER = "cifar-100-python"
PARTS = {"train": 500, "test": 100}  # files -> pictures of each class
CLASSES, SUPERCLASSES = 100, 20

COARSE = (
    "aquatic_mammals",
    "fish",
    "flowers",
    "food_containers",
    "fruit_and_vegetables",
    "household_electrical_devices",
    "household_furniture",
    "insects",
    "large_carnivores",
    "large_man-made_outdoor_things",
    "large_natural_outdoor_scenes",
    "large_omnivores_and_herbivores",
    "medium_mammals",
    "non-insect_invertebrates",
    "people",
    "reptiles",
    "small_mammals",
    "trees",
    "vehicles_1",
    "vehicles_2",
)
"""The superclasses in the order of their numbers, which `meta` must have too."""


class Pictures(NamedTuple):
    """What the folder holds; none of it can be written to."""

    pictures: np.ndarray
    """[60000, 3, 32, 32] uint8, those of the training set first."""
    members: Mapping[str, np.ndarray]
    """File -> which pictures each class has, [100, 500] or [100, 100], in the order of the file."""
    coarse: np.ndarray
    """[100], the superclass of each class."""
    names: np.ndarray
    """[100], of the classes."""


@cache
def read_pictures(root: Path) -> Pictures:
    """All pictures of `root`/cifar-100-python; kept for the rest of the process.

    Raises UserError, naming the file, where one is missing, is not what it is called, or has other
    numbers of pictures.
    """
    meta = _read(root, "meta", {"fine_label_names": str, "coarse_label_names": str})
    names = np.array(meta["fine_label_names"])
    if len(set(names)) != CLASSES or tuple(meta["coarse_label_names"]) != COARSE:
        raise UserError(
            f"data.folder: expected the {CLASSES} classes and {SUPERCLASSES} superclasses of "
            f"CIFAR-100 in {root / FOLDER / 'meta'}, got others. {_again(root)}"
        )
    pictures, members, labels = [], {}, []
    start = 0
    for part, of_class in PARTS.items():
        data, fine, coarse = _read_part(root, part, of_class)
        members[part] = start + np.argsort(fine, kind="stable").reshape(CLASSES, of_class)
        pictures.append(data.reshape(-1, 3, SIDE, SIDE))
        labels += list(zip(fine.tolist(), coarse.tolist(), strict=True))
        start += len(data)
    read = Pictures(np.concatenate(pictures), members, _superclasses(root, labels), names)
    for array in (read.pictures, read.coarse, read.names, *members.values()):
        array.setflags(write=False)
    return read


def _read_part(root: Path, part: str, of_class: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pictures [N, 3072] of a part with their classes and superclasses, [N] each."""
    content = _read(root, part, {"fine_labels": int, "coarse_labels": int})
    data = np.asarray(content.get("data"))
    fine, coarse = np.array(content["fine_labels"]), np.array(content["coarse_labels"])
    expected = (CLASSES * of_class, 3 * SIDE * SIDE)
    shapes = (data.shape, fine.shape, coarse.shape)
    if data.dtype != np.uint8 or shapes != (expected, expected[:1], expected[:1]):
        raise UserError(
            f"data.folder: expected {expected[0]} pictures of {expected[1]} bytes with as many "
            f"labels in {root / FOLDER / part}, got {data.dtype} of shape {data.shape} with "
            f"{len(fine)} and {len(coarse)} labels. {_again(root)}"
        )
    if not np.array_equal(np.sort(fine), np.repeat(np.arange(CLASSES), of_class)):
        raise UserError(
            f"data.folder: expected {of_class} pictures of each of {CLASSES} classes in "
            f"{root / FOLDER / part}, got other numbers. {_again(root)}"
        )
    return data, fine, coarse


def _superclasses(root: Path, labels: Sequence[tuple[int, int]]) -> np.ndarray:
    """The superclass of each class, [100], from the class and superclass of every picture."""
    superclass = dict(labels)
    five_each = sorted(list(range(SUPERCLASSES)) * 5)
    if len(set(labels)) != CLASSES or sorted(superclass.values()) != five_each:
        raise UserError(
            "data.folder: expected one superclass for every class, and five classes for each, in "
            f"{root / FOLDER}, got others. {_again(root)}"
        )
    return np.array([superclass[number] for number in range(CLASSES)])


def _read(root: Path, part: str, keys: Mapping[str, type]) -> dict[str, Any]:
    """What the file holds: a mapping in which these keys are lists of these."""
    path = root / FOLDER / part
    if not path.is_file():
        raise UserError(f"data.folder: expected {path}, found no such file. {_again(root)}")
    content = unpickled(path, _again(root))
    lists = [
        (content.get(key) if isinstance(content, dict) else None, kind)
        for key, kind in keys.items()
    ]
    if any(
        not isinstance(found, list) or any(not isinstance(x, kind) for x in found)
        for found, kind in lists
    ):
        raise UserError(
            f"data.folder: expected the lists {', '.join(keys)} in {path}, got others. "
            f"{_again(root)}"
        )
    return dict(content)


def _again(root: Path) -> str:
    return f"`raymtl data fetch cifar100 --root {root}` fetches the data."
