"""Pre-trained encoders of texts that this process has opened, and the vectors that it has computed.

A process opens a model once, and computes the vector of a text once.
"""

import hashlib
import sys
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from raymtl.encoders.texts.base import TextModel
from raymtl.encoders.texts.model_files import ModelFiles, model_files
from raymtl.encoders.texts.settings import UNIVERSAL, FoundTextEncoder, TextEncoder
from raymtl.encoders.texts.transformer import load_transformer
from raymtl.encoders.texts.universal import load_universal
from raymtl.types import UserError

MOST_BYTES = 512 << 20
"""Of vectors that a process keeps; the oldest go first."""
AT_ONCE = 2048
"""Texts whose vectors are computed together."""
PATIENCE_S = 2.0
"""Progress is shown of what takes longer, and at most as often."""


class Opened(NamedTuple):
    """A model, and the SHA-256 and the stamps of its files."""

    model: TextModel
    sha256: str
    stamps: tuple[tuple[str, int, int], ...]


_opened: dict[TextEncoder, Opened] = {}
_vectors: OrderedDict[bytes, np.ndarray] = OrderedDict()


def open_encoder(encoder: TextEncoder, key: str) -> Opened:
    """The model that `key` names. Raises UserError where it cannot be read."""
    encoder = encoder.model_copy(update={"frozen": True, "lr_scale": 1.0})
    known = _opened.get(encoder)
    files = model_files(encoder, key)
    stamps = files.stamps()
    if known is not None and known.stamps == stamps:
        return known
    model = _loaded(encoder, files, key)
    _opened[encoder] = Opened(model, files.sha256(), stamps)
    return _opened[encoder]


def _loaded(encoder: TextEncoder, files: ModelFiles, key: str) -> TextModel:
    if encoder.model == UNIVERSAL:
        return load_universal(encoder, key)
    return load_transformer(files.folder, encoder, key)


def find_encoder(encoder: TextEncoder, key: str) -> FoundTextEncoder:
    """What is found of it. Raises the same."""
    opened = open_encoder(encoder, key)
    given = encoder.model_dump()
    return FoundTextEncoder(**given, sha256=opened.sha256, size=opened.model.size)


def open_same(found: FoundTextEncoder, key: str) -> TextModel:
    """The model that was found. Raises UserError where its files are others now."""
    known = _opened.get(found.asked)
    if known is not None and known.sha256 == found.sha256:
        return known.model  # the files may be gone
    opened = open_encoder(found.asked, key)
    if opened.sha256 != found.sha256:
        raise UserError(
            f"{key}.model: {found.model}: expected the files with the SHA-256 "
            f"{found.sha256[:12]}..., by which this run was made, got others, with "
            f"{opened.sha256[:12]}.... Restore them, or start a new run."
        )
    return opened.model


def text_vectors(found: FoundTextEncoder, texts: Sequence[str], key: str) -> np.ndarray:
    """The vectors of texts [N, size] float32, of which each different one is computed once. Raises
    UserError where the model cannot be read.
    """
    keys = [_key(found, text) for text in texts]
    missing = {own: text for own, text in zip(keys, texts, strict=True) if own not in _vectors}
    out = np.empty((len(texts), found.size), np.float32)
    fresh: dict[bytes, np.ndarray] = {}
    if missing:
        model = open_same(found, key)
        progress = _Progress(key, len(missing))
        for start in range(0, len(missing), AT_ONCE):
            names = list(missing)[start : start + AT_ONCE]
            rows = model.vectors([missing[own] for own in names], progress.advance)
            fresh |= dict(zip(names, rows, strict=True))
    for row, own in enumerate(keys):
        if own in fresh:
            out[row] = fresh[own]
        else:
            out[row] = _vectors[own]
            _vectors.move_to_end(own)
    _keep(fresh)
    return out


def _key(found: FoundTextEncoder, text: str) -> bytes:
    model = f"{found.sha256} {found.pooled} {found.max_tokens}\n"
    return hashlib.blake2b((model + text).encode("utf8", "surrogatepass"), digest_size=16).digest()


def _keep(fresh: dict[bytes, np.ndarray]) -> None:
    _vectors.update(fresh)
    num_bytes = sum(vector.nbytes for vector in _vectors.values())
    while num_bytes > MOST_BYTES:
        _, oldest = _vectors.popitem(last=False)
        num_bytes -= oldest.nbytes


class _Progress:
    """Says how many texts are encoded, where that takes long."""

    def __init__(self, key: str, total: int) -> None:
        self.key = key
        self.total = total
        self.done = 0
        self.told = time.monotonic()

    def advance(self, number: int) -> None:
        self.done += number
        now = time.monotonic()
        if now - self.told > PATIENCE_S:
            self.told = now
            text = f"{self.key}: {self.done:,} of {self.total:,} texts are encoded"
            print(text, file=sys.stderr, flush=True)
