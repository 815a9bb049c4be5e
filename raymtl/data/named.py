"""The data sets that have a name: where their files are, their sums, and how each is checked.

URLs and md5 sums are torchvision's own.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

from raymtl.data.formats.cifar100 import FOLDER as CIFAR_FOLDER
from raymtl.data.sources.omniglot import DRAWINGS
from raymtl.data.sources.omniglot import PARTS as CHARACTERS

MNIST_BYTES = ((9_912_422, 47_040_016), (28_881, 60_008), (1_648_877, 7_840_016), (4_542, 10_008))
"""Packed and unpacked, of the files in torchvision's order."""
OMNIGLOT_BYTES = {"images_background": 9_464_212, "images_evaluation": 6_462_886}
CIFAR100_BYTES = 169_001_437
VOC_BYTES = {"2007": 460_032_000, "2007-test": 451_020_800}
VOC_COUNTS = {
    "JPEGImages/*.jpg": 9_963,
    "Annotations/*.xml": 9_963,
    "ImageSets/Main/trainval.txt": 1,
    "ImageSets/Main/test.txt": 1,
}
NYUV2_COUNTS = {
    f"{split}/{content}/*.npy": number
    for split, number in (("train", 795), ("val", 654))
    for content in ("image", "label", "depth", "normal")
}


class Archive(NamedTuple):
    """One file on a server."""

    urls: tuple[str, ...]
    """Of the same file, tried in this order."""
    md5: str
    num_bytes: int
    unpacks_to: str
    """Folder below the root that its contents belong to."""

    @property
    def name(self) -> str:
        return self.urls[0].rpartition("/")[2]


class Part(NamedTuple):
    """What is fetched at once: a file or a folder."""

    path: str
    """Below the root."""
    archives: tuple[Archive, ...]
    find_fault: Callable[[Path], str | None]
    """What is wrong with the one at a path, `expected ..., got ...`; None where nothing is."""


class Named(NamedTuple):
    """A set of data that has a name."""

    name: str
    licence: str
    parts: tuple[Part, ...]
    by_hand: str | None = None
    """How to get what cannot be fetched."""


def known() -> Mapping[str, Named]:
    """All that can be fetched or checked, by name."""
    data_sets = (_mnist(), _omniglot(), _cifar100(), _voc2007(), _nyuv2())
    return {data_set.name: data_set for data_set in data_sets}


# torchvision is imported where it is needed: no other command reads its URLs.
def _mnist() -> Named:
    from torchvision.datasets import MNIST

    parts = []
    for (name, md5), (packed, size) in zip(MNIST.resources, MNIST_BYTES, strict=True):
        urls = tuple(mirror + name for mirror in MNIST.mirrors)
        archive = Archive(urls, md5, packed, "MNIST/raw")
        path = f"MNIST/raw/{name.removesuffix('.gz')}"
        parts.append(Part(path, (archive,), partial(size_fault, size)))
    licence = "Creative Commons Attribution-ShareAlike 3.0, Y. LeCun and C. Cortes"
    return Named("mnist", licence, tuple(parts))


def _omniglot() -> Named:
    from torchvision.datasets import Omniglot

    parts = []
    for name, md5 in Omniglot.zips_md5.items():
        url = f"{Omniglot.download_url_prefix}/{name}.zip"
        archive = Archive((url,), md5, OMNIGLOT_BYTES[name], "omniglot-py")
        counts = {"*/character*/*.png": CHARACTERS[name] * DRAWINGS}
        parts.append(Part(f"omniglot-py/{name}", (archive,), partial(count_fault, counts)))
    return Named("omniglot", "MIT, B. Lake", tuple(parts))


def _cifar100() -> Named:
    from torchvision.datasets import CIFAR100

    md5 = dict([*CIFAR100.train_list, *CIFAR100.test_list])
    md5[CIFAR100.meta["filename"]] = CIFAR100.meta["md5"]
    archive = Archive((CIFAR100.url,), CIFAR100.tgz_md5, CIFAR100_BYTES, ".")
    return Named(
        "cifar100",
        "none stated; to be cited: Krizhevsky, 2009, Learning multiple layers of features from "
        "tiny images",
        (Part(CIFAR_FOLDER, (archive,), partial(md5_fault, md5)),),
    )


def _voc2007() -> Named:
    from torchvision.datasets.voc import DATASET_YEAR_DICT

    archives = []
    for key, size in VOC_BYTES.items():
        entry = DATASET_YEAR_DICT[key]
        archives.append(Archive((entry["url"],), entry["md5"], size, "."))
    return Named(
        "voc2007",
        "the terms of use of flickr; to be cited: Everingham et al., 2010, "
        "doi:10.1007/s11263-009-0275-4",
        (Part("VOCdevkit/VOC2007", tuple(archives), partial(count_fault, VOC_COUNTS)),),
    )


def _nyuv2() -> Named:
    return Named(
        "nyuv2",
        "none stated; to be cited: Silberman et al., 2012, doi:10.1007/978-3-642-33715-4_54, "
        "and arXiv:1803.10704",
        (Part("nyuv2", (), partial(count_fault, NYUV2_COUNTS)),),
        "The preparation of 288 x 384 pixels and 13 classes has no address with a sum, so that "
        "no command fetches it: follow the link to the pre-processed NYUv2 in the README of "
        "https://github.com/lorenmt/mtan",
    )


def size_fault(size: int, path: Path) -> str | None:
    """Whether a file is of another size."""
    got = path.stat().st_size
    if got == size:
        return None
    return f"expected {size} bytes, got {got}"


def count_fault(counts: Mapping[str, int], path: Path) -> str | None:
    """Whether patterns below a folder match other numbers of files."""
    for pattern, number in counts.items():
        got = sum(1 for _ in path.glob(pattern))
        if got != number:
            return f"expected {number} files {pattern}, got {got}"
    return None


def md5_fault(md5: Mapping[str, str], path: Path) -> str | None:
    """Whether files in a folder are missing or have other sums."""
    from torchvision.datasets.utils import calculate_md5

    for name, expected in md5.items():
        if not (path / name).is_file():
            return f"expected the file {name}, got none"
        got = calculate_md5(path / name)
        if got != expected:
            return f"expected {name} with the md5 sum {expected}, got {got}"
    return None
