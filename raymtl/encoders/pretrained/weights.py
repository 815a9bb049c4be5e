"""Files of pre-trained weights: safetensors, or what torch.load reads without running code.

What was read stays in the process under the text of `encoder.weights`. Ray's processes get it from
the one that started them (`held` and `receive`), so that they need no file.
"""

import hashlib
import io
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from raymtl.types import UserError

NONE = "none"
HUB = "hub:"
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
WRAPPERS = ("state_dict", "model", "model_state_dict")
"""Keys under which training scripts put the weights."""

Fetch = Callable[[str], Path]
"""Of a name behind `hub:` -> the file, fetched or of an earlier time. Raises any Exception."""


class Weights(NamedTuple):
    """The tensors of a file by name, and the SHA-256 of the file."""

    sha256: str
    entries: Mapping[str, Tensor]


class _Held(NamedTuple):
    weights: Weights
    stamp: tuple[int, int] | None
    """Of the file when it was read: its time and size. None if another process read it."""


Load = Callable[[], Mapping[str, Weights]]

_held: dict[str, _Held] = {}
_sent: dict[str, Load] = {}
"""What another process has read and this one has not needed yet."""


def absolute(source: str) -> str:
    """`encoder.weights` with the whole path of the file that it names."""
    if source == NONE or source.startswith(HUB):
        return source
    return str(Path(source).expanduser().absolute())


def read(source: str, fetch: Fetch) -> Weights:
    """The weights that `encoder.weights` names. Raises UserError."""
    if source in _sent:
        _held[source] = _Held(_sent.pop(source)()[source], None)
    held = _held.get(source)
    if held is not None and held.stamp is None:
        return held.weights
    path = _path(source, fetch)
    stamp = _stamp(path)
    if held is not None and held.stamp == stamp:
        return held.weights
    content = _content(path)
    entries = _parsed(path, content)
    weights = Weights(hashlib.sha256(content).hexdigest(), entries)
    _held[source] = _Held(weights, stamp)
    return weights


def read_same(source: str, sha256: str, fetch: Fetch) -> Weights:
    """The same, of which the hash is known. Raises UserError where it is another."""
    known = _held.get(source)
    if known is not None and known.weights.sha256 == sha256:
        return known.weights  # the file may be gone
    weights = read(source, fetch)
    if weights.sha256 != sha256:
        raise UserError(
            f"encoder.weights: {source}: expected the file with the SHA-256 {sha256[:12]}..., by "
            f"which this run was made, got one with {weights.sha256[:12]}.... Restore the file, or "
            "start a new run."
        )
    return weights


def held(sources: Iterable[str]) -> dict[str, Weights]:
    """What this process has read of these values of `encoder.weights`."""
    places = {absolute(source) for source in sources}
    return {source: each.weights for source, each in _held.items() if source in places}


def receive(hashes: Mapping[str, str], load: Load) -> None:
    """Takes what another process has read, when it is needed.

    Args:
        hashes: `encoder.weights` -> the SHA-256 of the file.
        load: gives the weights of all of them.
    """
    for source, sha256 in hashes.items():
        if source not in _held or _held[source].weights.sha256 != sha256:
            _sent[source] = load


def _path(source: str, fetch: Fetch) -> Path:
    if source.startswith(HUB):
        name = source.removeprefix(HUB)
        try:
            return fetch(name)
        except UserError:
            raise
        except Exception as error:  # of sockets, of HTTP, of the hub's client
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise UserError(
                f"encoder.weights: hub: {name} could not be fetched ({reason}). It needs a "
                "network; without one, name a file."
            ) from None
    path = Path(source).expanduser()
    if path.suffix not in SUFFIXES:
        raise UserError(
            f"encoder.weights: expected none, hub:NAME or a file that ends in "
            f"{', '.join(SUFFIXES)}, got '{source}'. Correct it."
        )
    return path


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError as error:
        raise _unreadable(path, error) from None
    return status.st_mtime_ns, status.st_size


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: OSError) -> UserError:
    return UserError(
        f"encoder.weights: {path}: expected a file of weights, got one that cannot be read "
        f"({error.strerror}). Correct the path."
    )


def _parsed(path: Path, content: bytes) -> dict[str, Tensor]:
    loaded: Any
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load  # the core needs none

            loaded = load(content)
        else:
            loaded = torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
    except Exception as error:  # half a dozen kinds for what is damaged, or is more than tensors
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"encoder.weights: {path}: expected tensors alone, which are read without running "
            f"code, got something else ({reason[:200]}). Save the weights as safetensors."
        ) from None
    for key in WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    return _tensors(path, loaded)


def _tensors(path: Path, loaded: Any) -> dict[str, Tensor]:
    """The entries by name. Raises UserError for what is no tensor, or no finite number."""
    if not isinstance(loaded, Mapping) or not loaded:
        raise UserError(
            f"encoder.weights: {path}: expected tensors by name, got a {type(loaded).__name__}. "
            "Save the state_dict of the model."
        )
    entries = {}
    for key, value in loaded.items():
        if not isinstance(value, Tensor):
            raise UserError(
                f"encoder.weights: {path}: {key}: expected a tensor, got a "
                f"{type(value).__name__}. Save the state_dict of the model."
            )
        if value.is_floating_point() and not value.isfinite().all():
            raise UserError(
                f"encoder.weights: {path}: {key}: expected finite numbers, got others. Take "
                "another file."
            )
        entries[str(key).removeprefix("module.")] = value
    return entries
