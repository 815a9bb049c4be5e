"""Places, labels and batches of the pictures in an episode of CIFAR-100.

The place of a picture in a split counts through its classes: class * pictures of a class + number.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from raymtl.data.base import Arrays, Split
from raymtl.data.formats.cifar100 import COARSE
from raymtl.types import Batch, Episode


def places_of_superclass(arrays: Arrays, split: Split, name: str) -> np.ndarray:
    """The places of the pictures of a superclass, ascending."""
    places = np.arange(arrays[split].size).reshape(arrays[split].shape)
    own: np.ndarray = places[arrays["coarse"] == COARSE.index(name)]
    return own.reshape(-1)


def labels_of(arrays: Arrays, split: Split, task: str, places: np.ndarray) -> Tensor:
    """The labels of a task at these places [...], int64 [...].

    `fine` and `coarse` number all classes and superclasses; a superclass numbers its own classes.
    """
    fine, coarse = places // arrays[split].shape[1], arrays["coarse"]
    if task == "fine":
        return torch.from_numpy(fine)
    if task == "coarse":
        return torch.from_numpy(coarse[fine])
    # Which of the superclass's own classes, in their order.
    return torch.from_numpy(np.searchsorted(np.flatnonzero(coarse == COARSE.index(task)), fine))


def class_names(names: np.ndarray) -> list[str]:
    """[E, ways] -> the classes of each episode in words."""
    return [", ".join(own) for own in names]


def split_off_support(
    pictures: Tensor | Mapping[str, Tensor], targets: Mapping[str, Tensor], shots: int
) -> Episode:
    """The first `shots` pictures and labels of each episode are the support, the others the
    query.
    """

    def part(some: slice) -> Batch:
        if isinstance(pictures, Tensor):
            inputs: Tensor | dict[str, Tensor] = pictures[:, some].contiguous()
        else:
            inputs = {name: own[:, some].contiguous() for name, own in pictures.items()}
        return Batch(inputs, {name: target[:, some] for name, target in targets.items()}, {})

    return Episode(part(slice(shots)), part(slice(shots, None)))
