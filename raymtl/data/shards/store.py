"""A folder, or a URL, with the files of prepared data."""

import hashlib
import os
import posixpath
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.fs as pafs

from raymtl.data.tables.paths import file_system_of, reason
from raymtl.storage import atomic
from raymtl.storage.places import expand
from raymtl.storage.redaction import redacted
from raymtl.types import UserError

CHUNK = 1 << 22
"""Bytes that are read at a time for a checksum."""

OBJECT_STORAGES = frozenset({"s3", "gcs", "abfs"})
"""File systems of Arrow without folders; a file is written where there is none."""

Result = TypeVar("Result")


class Store:
    """The files directly in a folder; each is written whole or not at all."""

    def __init__(self, place: str, key: str) -> None:
        """Raises UserError if the key's place is on no file system that is known."""
        self.shown, self.key = place, key
        expanded = expand(place, key)
        self.is_local = "://" not in expanded
        try:
            if self.is_local:
                self.fs, self.root = pafs.LocalFileSystem(), os.path.abspath(expanded)
            else:
                self.fs, self.root = file_system_of(expanded)
        except (OSError, ImportError, ValueError, pa.ArrowException) as error:
            raise UserError(
                f"{key}: expected a folder or a URL that can be reached, got {place} "
                f"({redacted(reason(error))}). Correct it, or see to the access."
            ) from None

        self._has_folder = self.fs.type_name in OBJECT_STORAGES

    def path(self, name: str) -> str:
        """Where a file is."""
        return posixpath.join(self.root, name)

    def sizes(self) -> dict[str, int]:
        """The names of all files and folders directly in the folder, and their sizes in bytes.
        Raises UserError if it is no folder, or cannot be listed.
        """
        selector = pafs.FileSelector(self.root, allow_not_found=True)
        try:
            infos = self.fs.get_file_info(selector)
        except OSError as error:
            raise UserError(
                f"{self.key}: expected a folder that can be listed, got {self.shown} "
                f"({redacted(reason(error))}). Correct it, or see to the access."
            ) from None
        return {info.base_name: info.size or 0 for info in infos}

    def publish(self, name: str, content: bytes | pa.Buffer) -> None:
        """Writes a file under another name and renames it. Waits for storage that is full.

        Raises UserError if the storage stays full or cannot be written.
        """
        try:
            if self.is_local:
                path = Path(self.path(name))
                atomic.publish(path, lambda aside: _write(aside, content))
            else:
                atomic.patiently(Path(name), lambda: self._put(name, content))
        except OSError as error:
            raise UserError(
                f"{self.key}: {self.shown}: expected room for {name}, got an error of the storage "
                f"({redacted(reason(error))}). Free some space, or see to the access, and give the "
                "same command again: shards that are complete stay."
            ) from None

    def _put(self, name: str, content: bytes | pa.Buffer) -> None:
        aside = self.path(f".{name}.{socket.gethostname()}.{os.getpid()}")
        if not self._has_folder:
            self.fs.create_dir(self.root, recursive=True)
            self._has_folder = True
        try:
            with self.fs.open_output_stream(aside, compression=None) as stream:
                stream.write(content)
            self.fs.move(aside, self.path(name))
        except OSError:
            with suppress(OSError):  # it fills the storage for nothing
                self.fs.delete_file(aside)
            raise

    def read(self, name: str) -> bytes:
        """All of a file. Raises OSError."""

        def read() -> bytes:
            with self.fs.open_input_stream(self.path(name), compression=None) as stream:
                content: bytes = stream.read()
            return content

        return atomic.patiently(Path(name), read)

    def read_shard(self, name: str, read: Callable[[Any], Result]) -> Result:
        """What `read` makes of an opened file. Raises UserError if it is missing or damaged."""
        try:
            with self.fs.open_input_file(self.path(name)) as file:
                return read(file)
        except FileNotFoundError:
            raise self.error(name, "where there is none") from None
        except (OSError, ValueError, pa.ArrowException) as error:
            raise self.error(name, f"which is damaged ({reason(error)})") from None

    def error(self, name: str, state: str) -> UserError:
        """The error about a file that is not as it was written."""
        return UserError(
            f"{self.key}: expected a shard of prepared data, got {self.place(name)}, {state}. "
            "Give the same `raymtl data prepare` again: it writes what is missing."
        )

    def place(self, name: str) -> str:
        """Where a file is, as a user would write it: in a URL before its settings."""
        place, mark, settings = self.shown.partition("?")
        if "://" not in self.shown:
            place, mark, settings = self.shown, "", ""
        return f"{posixpath.join(place, name)}{mark}{settings}"

    def checksum(self, name: str) -> str:
        """The SHA-256 of a file. Raises OSError."""
        digest = hashlib.sha256()
        with self.fs.open_input_stream(self.path(name), compression=None) as stream:
            while chunk := stream.read(CHUNK):
                digest.update(chunk)
        return digest.hexdigest()

    def holds(self, name: str) -> bool:
        """Whether there is such a file."""
        return bool(self.fs.get_file_info(self.path(name)).type == pafs.FileType.File)

    def remove(self, name: str) -> None:
        """Removes a file."""
        self.fs.delete_file(self.path(name))


def _write(path: Path, content: bytes | pa.Buffer) -> None:
    with path.open("wb") as file:
        file.write(content)
