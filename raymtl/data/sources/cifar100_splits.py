"""The splits of the classes of CIFAR-100 for few-shot learning."""

from collections.abc import Mapping
from typing import Literal

import numpy as np

from raymtl.data.base import Split
from raymtl.data.formats.cifar100 import CLASSES, Pictures

FewShotSplit = Literal["cifar_fs", "fc100"]

CIFAR_FS: Mapping[Split, tuple[str, ...]] = {
    "val": (
        *("beaver", "beetle", "butterfly", "camel", "cattle", "crab", "crocodile", "flatfish"),
        *("lamp", "maple_tree", "motorcycle", "otter", "sea", "shark", "television", "tractor"),
    ),
    "test": (
        *("baby", "bed", "bicycle", "chimpanzee", "fox", "leopard", "man", "pickup_truck"),
        *("plain", "poppy", "rocket", "rose", "snail", "sweet_pepper", "table", "telephone"),
        *("wardrobe", "whale", "woman", "worm"),
    ),
}
"""Classes of CIFAR-FS (Bertinetto et al., 2018, arXiv:1805.08136); the other 64 are for training.
"""

FC100: Mapping[Split, tuple[int, ...]] = {"val": (8, 11, 13, 16), "test": (0, 7, 12, 14)}
"""Superclasses of FC100 (Oreshkin et al., 2018, arXiv:1805.10123); the other 12 are for training.
"""

NUM_CLASSES: Mapping[FewShotSplit, Mapping[Split, int]] = {
    "cifar_fs": {"train": 64, "val": 16, "test": 20},
    "fc100": {"train": 60, "val": 20, "test": 20},
}


def classes_of_splits(read: Pictures, by: FewShotSplit) -> dict[Split, np.ndarray]:
    """The numbers of the classes of each split, ascending."""
    held: dict[Split, np.ndarray] = {}
    for split in ("val", "test"):
        if by == "cifar_fs":
            held[split] = np.flatnonzero(np.isin(read.names, CIFAR_FS[split]))
        else:
            held[split] = np.flatnonzero(np.isin(read.coarse, FC100[split]))
    rest = np.setdiff1d(np.arange(CLASSES), np.concatenate(list(held.values())))
    return {"train": rest, **held}
