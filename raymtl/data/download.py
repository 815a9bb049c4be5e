"""What there is of named data below a folder, whether it is right, and getting what is missing.

torchvision's `download_url` is not what fetches: that writes under the final name, does not go on
where a connection broke, waits indefinitely and falls back to http.
"""

import os
import shutil
from collections.abc import Callable
from functools import partial
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from raymtl.data.named import Archive, Named, Part
from raymtl.types import UserError

TIMEOUT_S = 30.0  # without a byte
CHUNK = 1 << 18  # bytes
UNKNOWN_RANGE = 416  # what a server says of bytes that it does not have

Report = Callable[[str, int, int], None]
"""Takes what is done, how many bytes of it are, and of how many."""


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
        fault = part.find_fault(path)
        if fault:
            raise UserError(
                f"{path}: {fault}. What is there is never overwritten: move it away to get the "
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
            fault = part.find_fault(unpacked / part.path)
        else:
            fault = "it is not in it"
        if fault:
            raise UserError(
                f"{', '.join(archive.name for archive in part.archives)}: expected to hold "
                f"{part.path}, but {fault}. Report this: the sums are right."
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
            reasons.append(f"{url}: {_reason(error)}")
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


def _reason(error: Exception) -> object:
    if isinstance(error, HTTPError):
        return error
    return getattr(error, "reason", error)


def _copy(url: str, path: Path, report: Callable[[int, int], None]) -> None:
    """Appends to the file what it lacks; begins anew where the server does not take ranges.

    Raises ConnectionError where fewer bytes come than were announced.
    """
    done = 0
    headers = {"User-Agent": "raymtl"}
    if path.exists():
        done = path.stat().st_size
    if done:
        headers["Range"] = f"bytes={done}-"
    request = Request(url, headers=headers)
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
        total = 0
        if announced:
            total = done + int(announced)
        path.parent.mkdir(parents=True, exist_ok=True)
        mode = "wb"
        if done:
            mode = "ab"
        with path.open(mode) as file:
            while chunk := response.read(CHUNK):
                file.write(chunk)
                done += len(chunk)
                report(done, total)
    if done < total:
        raise ConnectionError(f"the connection broke after {done} of {total} bytes")
    return None
