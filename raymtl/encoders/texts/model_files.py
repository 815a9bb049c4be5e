"""The files of a pre-trained encoder: a folder, what the hub has fetched, or those of a package."""

import hashlib
from pathlib import Path
from typing import NamedTuple

from raymtl.encoders.texts.settings import HUB, UNIVERSAL, TextEncoder
from raymtl.encoders.texts.universal import universal_folder
from raymtl.types import UserError

READ = (".json", ".txt", ".model", ".codes", ".spm", ".npz", ".safetensors")
PICKLED = ".bin"
"""Weights that are read where there are no others, by torch.load with weights_only."""


class ModelFiles(NamedTuple):
    """A folder, and all files in it that the vectors depend on."""

    folder: Path
    files: tuple[Path, ...]

    def stamps(self) -> tuple[tuple[str, int, int], ...]:
        """Names, times and sizes."""
        found = []
        for path in self.files:
            status = path.stat()
            found.append((str(path), status.st_mtime_ns, status.st_size))
        return tuple(found)

    def sha256(self) -> str:
        """Of the names and contents of the files, wherever their folder is."""
        digest = hashlib.sha256()
        for path in self.files:
            with path.open("rb") as content:
                own = hashlib.file_digest(content, "sha256").hexdigest()
            digest.update(f"{path.relative_to(self.folder).as_posix()} {own}\n".encode())
        return digest.hexdigest()


def model_files(encoder: TextEncoder, key: str) -> ModelFiles:
    """The files of a model, fetched where it is of the hub. Raises UserError."""
    folder = _folder(encoder, key)
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = [path for path in paths if path.suffix in READ]
    if not any(path.suffix == ".safetensors" for path in files):
        files += [path for path in paths if path.suffix == PICKLED]
    return ModelFiles(folder, tuple(files))


def _folder(encoder: TextEncoder, key: str) -> Path:
    if encoder.model == UNIVERSAL:
        return universal_folder(key)
    if encoder.model.startswith(HUB):
        return _fetched(encoder.model.removeprefix(HUB), key)
    folder = Path(encoder.model)
    if not folder.is_dir():
        raise UserError(
            f"{key}.model: expected a folder of transformers or sentence-transformers, "
            f"{HUB}OWNER/REPOSITORY or {UNIVERSAL}, got {encoder.model}, where there is no folder. "
            "Restore it, or correct the path."
        )
    return folder


def _fetched(name: str, key: str) -> Path:
    """The files of a repository of the hub, which stay in its cache."""
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(name, allow_patterns=[f"*{ending}" for ending in READ]))
    except Exception as error:  # of names, of sockets, of HTTP, of the hub's client
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(
            f"{key}.model: {HUB}{name} could not be fetched ({reason[:200]}). It needs a network "
            "and the name of a repository; without a network, give a folder."
        ) from None
