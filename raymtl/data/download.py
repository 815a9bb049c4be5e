"""Named data: what there is of it below a folder, whether it is right, and getting what is missing.

URLs and md5 sums are torchvision's own. Its `download_url` is not what fetches: that writes under
the final name, does not go on where a connection broke, waits for ever and falls back to http.
"""

import os
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from raymtl.data.formats.cifar100 import FOLDER as CIFAR_FOLDER
from raymtl.data.sources.omniglot import DRAWINGS
from raymtl.data.sources.omniglot import PARTS as CHARACTERS
from raymtl.types import UserError

TIMEOUT_S = 30.0  # without a byte
CHUNK = 1 << 18  # bytes
UNKNOWN_RANGE = 416  # what a server says of bytes that it does not have

Report = Callable[[str, int, int], None]
"""Takes what is done, how many bytes of it are, and of how many."""


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
    algorithm: Callable[[Path], str | None]
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
    # Here and not above: no other command needs it.
    from torchvision.datasets import CIFAR100, MNIST, Omniglot
    from torchvision.datasets.voc import DATASET_YEAR_DICT as VOC

    meta = CIFAR100.meta["filename"], CIFAR100.meta["md5"]
    cifar_md5 = {file: md5 for file, md5 in (*CIFAR100.train_list, *CIFAR100.test_list, meta)}  # noqa: C416
    cifar = Archive((CIFAR100.url,), CIFAR100.tgz_md5, 169_001_437, ".")
    voc = [
        Archive((VOC[key]["url"],), VOC[key]["md5"], size, ".")
        for key, size in (("2007", 460_032_000), ("2007-test", 451_020_800))
    ]
    found = (
        Named(
            "mnist",
            "Creative Commons Attribution-ShareAlike 3.0, Y. LeCun and C. Cortes",
            tuple(
                Part(
                    f"MNIST/raw/{name.removesuffix('.gz')}",
                    (
                        Archive(
                            tuple(mirror + name for mirror in MNIST.mirrors),
                            md5,
                            packed,
                            "MNIST/raw",
                        ),
                    ),
                    partial(_other_size, size),
                )
                for (name, md5), (packed, size) in zip(MNIST.resources, MNIST_BYTES, strict=True)
            ),
        ),
        Named(
            "omniglot",
            "MIT, B. Lake",
            tuple(
                Part(
                    f"omniglot-py/{name}",
                    (
                        Archive(
                            (f"{Omniglot.download_url_prefix}/{name}.zip",),
                            md5,
                            OMNIGLOT_BYTES[name],
                            "omniglot-py",
                        ),
                    ),
                    partial(_other_counts, {"*/character*/*.png": CHARACTERS[name] * DRAWINGS}),
                )
                for name, md5 in Omniglot.zips_md5.items()
            ),
        ),
        Named(
            "cifar100",
            "none stated; to be cited: Krizhevsky, 2009, Learning multiple layers of features from "
            "tiny images",
            (Part(CIFAR_FOLDER, (cifar,), partial(_other_sums, cifar_md5)),),
        ),
        Named(
            "voc2007",
            "the terms of use of flickr; to be cited: Everingham et al., 2010, "
            "doi:10.1007/s11263-009-0275-4",
            (Part("VOCdevkit/VOC2007", tuple(voc), partial(_other_counts, VOC_COUNTS)),),
        ),
        Named(
            "nyuv2",
            "none stated; to be cited: Silberman et al., 2012, doi:10.1007/978-3-642-33715-4_54, "
            "and arXiv:1803.10704",
            (Part("nyuv2", (), partial(_other_counts, NYUV2_COUNTS)),),
            "The preparation of 288 x 384 pixels and 13 classes has no address with a sum, so that "
            "no command fetches it: follow the link to the pre-processed NYUv2 in the README of "
            "https://github.com/lorenmt/mtan",
        ),
    )
    return {named.name: named for named in found}


MNIST_BYTES = ((9_912_422, 47_040_016), (28_881, 60_008), (1_648_877, 7_840_016), (4_542, 10_008))
"""Packed and unpacked, of the files in torchvision's order."""
OMNIGLOT_BYTES = {"images_background": 9_464_212, "images_evaluation": 6_462_886}
VOC_COUNTS = {
    "JPEGImages/*.jpg": 9_963,
    "Annotations/*.xml": 9_963,
    "ImageSets/Main/trainval.txt": 1,
    "ImageSets/Main/test.txt": 1,
}
NYUV2_COUNTS = {
    f"{split}/{kind}/*.npy": number
    for split, number in (("train", 795), ("val", 654))
    for kind in ("image", "label", "depth", "normal")
}


def _other_size(size: int, path: Path) -> str | None:
    got = path.stat().st_size
    if got == size:
        return None
    return f"expected {size} bytes, got {got}"


def _other_counts(counts: Mapping[str, int], path: Path) -> str | None:
    """Patterns below the path -> how many files there are."""
    for pattern, number in counts.items():
        got = sum(1 for _ in path.glob(pattern))
        if got != number:
            return f"expected {number} files {pattern}, got {got}"
    return None


def _other_sums(md5: Mapping[str, str], path: Path) -> str | None:
    from torchvision.datasets.utils import calculate_md5

    for name, expected in md5.items():
        if not (path / name).is_file():
            return f"expected the file {name}, got none"
        got = calculate_md5(path / name)
        if got != expected:
            return f"expected {name} with the md5 sum {expected}, got {got}"
    return None


def missing(named: Named, root: Path) -> list[Part]:
    """The parts that are not there, after a check of those that are.

    Raises UserError where one is wrong, or where it is to be had by hand alone.
    """
    lacking = []
    for part in named.parts:
        path = root / part.path
        if not path.exists():
            lacking.append(part)
            continue
        algorithm = part.algorithm(path)
        if algorithm:
            raise UserError(
                f"{path}: {algorithm}. What is there is never overwritten: move it away to get the "
                "original, or name another --root."
            )
    if lacking and named.by_hand:
        raise UserError(
            f"{root / lacking[0].path}: expected {named.name}, got nothing. {named.by_hand}, "
            "unpack it there, and call this again to have it checked."
        )
    return lacking


def fetch(named: Named, part: Part, root: Path, report: Report) -> None:
    """Downloads, checks and unpacks a part beside its place, then moves it there in one piece.

    What was downloaded before a connection broke is kept below `root` in a folder of its own,
    `.NAME.fetching`, and the next call goes on from there. Raises UserError in one sentence.
    """
    staging = root / f".{named.name}.fetching"
    unpacked = staging / "unpacked"
    try:
        for archive in part.archives:
            _download(archive, staging / archive.name, report)
        shutil.rmtree(unpacked, ignore_errors=True)
        for archive in part.archives:
            report(f"unpacking {archive.name}", 0, 0)
            _unpack(staging / archive.name, unpacked / archive.unpacks_to)
        if (unpacked / part.path).exists():
            algorithm = part.algorithm(unpacked / part.path)
        else:
            algorithm = "it is not in it"
        if algorithm:
            raise UserError(
                f"{', '.join(archive.name for archive in part.archives)}: expected to hold "
                f"{part.path}, but {algorithm}. Report this: the sums are right."
            )
        (root / part.path).parent.mkdir(parents=True, exist_ok=True)
        os.replace(unpacked / part.path, root / part.path)
        shutil.rmtree(staging)
    except OSError as error:
        raise UserError(
            f"{error.filename or root}: cannot be written ({error.strerror}). Free space or name "
            "another --root."
        ) from None


def _unpack(archive: Path, folder: Path) -> None:
    from torchvision.datasets.utils import extract_archive

    folder.mkdir(parents=True, exist_ok=True)
    extract_archive(archive, folder)


def _download(archive: Archive, path: Path, report: Report) -> None:
    """Leaves the file at `path` with the right sum, or raises UserError."""
    from torchvision.datasets.utils import calculate_md5, check_integrity

    if check_integrity(path, archive.md5):
        return
    unfinished = path.with_name(f"{path.name}.part")
    reasons = []
    for url in archive.urls:
        try:
            _copy(url, unfinished, partial(report, archive.name))
            break
        except (URLError, HTTPException, TimeoutError, ConnectionError) as error:
            reasons.append(
                f"{url}: "
                f"{error if isinstance(error, HTTPError) else getattr(error, 'reason', error)}"
            )
    else:
        raise UserError(
            f"{'; '.join(reasons)}. Check the connection and call this again: it goes on where it "
            "stopped."
        )
    got = calculate_md5(unfinished)
    if got != archive.md5:
        unfinished.unlink()
        raise UserError(
            f"{url}: expected the md5 sum {archive.md5}, got {got}. Nothing of it was kept: call "
            "this again, and get the file from elsewhere if it happens again."
        )
    unfinished.replace(path)


def _copy(url: str, path: Path, report: Callable[[int, int], None]) -> None:
    """Appends to the file what it lacks; begins anew where the server does not take ranges.

    Raises ConnectionError where fewer bytes come than were announced.
    """
    if path.exists():
        done = path.stat().st_size
    else:
        done = 0
    request = Request(
        url, headers={"User-Agent": "raymtl", **({"Range": f"bytes={done}-"} if done else {})}
    )
    try:
        response = urlopen(request, timeout=TIMEOUT_S)
    except HTTPError as error:
        if error.code != UNKNOWN_RANGE or not done:
            raise
        path.unlink()  # as long as the whole file, or longer: not a beginning of it
        return _copy(url, path, report)
    with response:
        if response.status != 206:
            done = 0
        announced = response.headers.get("Content-Length")
        if announced:
            total = done + int(announced)
        else:
            total = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab" if done else "wb") as file:
            while chunk := response.read(CHUNK):
                file.write(chunk)
                done += len(chunk)
                report(done, total)
    if done < total:
        raise ConnectionError(f"the connection broke after {done} of {total} bytes")
    return None
