"""The manifest of a checkpoint: the sizes and checksums of its files, by which damage is found."""

import hashlib
import json
import os
from pathlib import Path

from raymtl.storage import atomic, strict_json

NAME = "manifest.json"


def write(folder: Path, step: int) -> None:
    """Writes the manifest of the files in a folder, which are on the disk before it.

    Else a power cut could leave a manifest of files that never arrived.
    """
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": _synced(path)}
        for path in sorted(folder.iterdir())
    }
    (folder / NAME).write_text(strict_json.dumps({"step": step, "files": files}, indent=2) + "\n")
    _synced(folder / NAME)


def _synced(path: Path) -> str:
    """Its SHA-256, once the disk has it."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint; None where its files are those of its manifest.

    Waits for storage that is away.
    """
    return atomic.patiently(folder, lambda: _difference(folder))


def _difference(folder: Path) -> str | None:
    try:
        files = json.loads((folder / NAME).read_text())["files"]
        for name, expected in files.items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != expected["bytes"]:
                return f"{name} has {path.stat().st_size} bytes and not {expected['bytes']}"
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != expected["sha256"]:
                    return f"{name} has another checksum than its manifest says"
    except FileNotFoundError:
        return "it has no manifest"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if atomic.is_of_storage(error):
            raise
        return f"its manifest cannot be read ({error})"
    return None
