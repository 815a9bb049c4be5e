"""Where prepared data may be written: what is wrong with a place is said before anything is read
or started.
"""

import fnmatch
import os
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath

from raymtl.data.prepared.encode_shard import OUTPUT
from raymtl.data.prepared.prepare import check_folder
from raymtl.data.shards.store import Store
from raymtl.data.tables.settings import FilesConfig
from raymtl.storage.places import absolute, expand
from raymtl.types import UserError

EXAMPLE = "shard-000000.parquet"
"""A file that would be written."""


def checked_output(output: str) -> str:
    """The place of an output, from the root of the disk. Raises UserError for one that shards
    cannot go to.
    """
    if not output.strip():
        raise UserError(
            f"{OUTPUT}: expected a folder or a URL that the shards go to, got none. Give one, such "
            "as prepared."
        )
    place = absolute(output, OUTPUT)
    if os.path.isfile(expand(place, OUTPUT)):
        raise UserError(f"{OUTPUT}: expected a folder, got the file {output}. Choose another name.")
    check_folder(Store(place, OUTPUT))
    return place


def check_outside(place: str, source: FilesConfig) -> None:
    """Raises UserError if the shards would be among the files that they are made of."""
    output = _plain(place, OUTPUT)
    for key, path in _paths(source):
        if path and _holds(_plain(path, key), output):
            raise UserError(
                f"{OUTPUT}: expected a folder outside of {key}, got {place}, whose shards would be "
                f"read as data of {path}. Choose another folder."
            )


def check_folder_can_follow(output: str) -> None:
    """Raises UserError for a URL whose settings are in a variable, so that no folder can be named
    below it.
    """
    expanded = expand(output, OUTPUT)
    if "://" in expanded and "?" in expanded and "?" not in output:
        raise UserError(
            f"{OUTPUT}: expected a URL whose settings follow its folder, such as "
            f"s3://bucket/folder?$SETTINGS, got {output}, which holds both. Write the folder out, "
            "and only the settings into the variable."
        )


def _plain(path: str, key: str) -> str:
    """A path from the root of the disk, or a URL without its settings; no variables."""
    expanded = expand(path, key)
    if "://" in expanded:
        return expanded.partition("?")[0].rstrip("/")
    return os.path.realpath(expanded)


def _paths(source: FilesConfig) -> Iterator[tuple[str, str]]:
    """The places of the user's files, each after its key."""
    path = source.path
    if isinstance(path, Mapping):
        yield from ((f"data.path.{split}", of_split) for split, of_split in path.items())
    elif isinstance(path, str):
        yield "data.path", path
    else:
        yield from (("data.path", one) for one in path)
    for name, task in source.tasks.items():
        yield f"data.tasks.{name}.path", task.path or ""


def _holds(path: str, output: str) -> bool:
    """Whether a path, or a pattern, also means the shards of an output."""
    shard = PurePosixPath(output, EXAMPLE)
    for place in (shard, *shard.parents):
        if str(place) == str(PurePosixPath(path)):
            return True
        if "**" in path and fnmatch.fnmatch(str(place), path):
            return True
        has_depth = len(place.parts) == len(PurePosixPath(path).parts)
        if "*" in path and has_depth and place.match(path):
            return True
    return False
