"""Columns of texts that a pre-trained encoder makes vectors of."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from raymtl.data.tables.columns import texts
from raymtl.data.tables.findings import columns_named
from raymtl.data.tables.fitted_column import FittedColumn
from raymtl.data.tables.token_slots import encoder_key
from raymtl.encoders.texts.settings import FoundTextEncoder, TextInput
from raymtl.storage.notes import Note
from raymtl.storage.places import absolute
from raymtl.types import UserError


def text_column(given: TextInput, name: str, column: pa.ChunkedArray) -> FittedColumn:
    """The column before anything is summed up. Raises UserError where there is no such encoder."""
    from raymtl.encoders.texts.opened import find_encoder, open_same
    from raymtl.encoders.texts.token_slot import check_trainable

    key = encoder_key(name)
    found = find_encoder(given.encoder, key)
    size = found.size
    if not found.frozen:
        check_trainable(open_same(found, key), f"{key}.frozen")
        size = max([1, *map(len, _tokens(found, texts(column).drop_null().to_pylist(), key))])
    return FittedColumn(column=name, role="text", size=size, encoder=found)


def _tokens(found: FoundTextEncoder, given: Sequence[str], key: str) -> list[list[int]]:
    from raymtl.encoders.texts.opened import open_same
    from raymtl.encoders.texts.transformer import TransformerEncoder

    model = open_same(found, key)
    assert isinstance(model, TransformerEncoder)
    return model.tokens(given)


def encode_tokens(fitted: FittedColumn, column: pa.ChunkedArray, out: np.ndarray) -> None:
    """Writes the numbers of the tokens of texts to `out` [N, size], and -1 after the last one. What
    is longer is cut off. Raises UserError where the model is gone, or is another.
    """
    assert fitted.encoder is not None
    values = texts(column)
    known = np.flatnonzero(values.is_valid().to_numpy(zero_copy_only=False))
    tokens = _tokens(fitted.encoder, values.drop_null().to_pylist(), encoder_key(fitted.column))
    out[:] = -1
    for row, own in zip(known.tolist(), tokens, strict=True):
        out[row, : len(own)] = own[: fitted.size]


def encoded_texts(fitted: FittedColumn, column: pa.ChunkedArray) -> np.ndarray:
    """The vectors of texts as float64 [N, size], nan where a text is missing. Raises UserError
    where the model is gone, or is another.
    """
    from raymtl.encoders.texts.opened import text_vectors

    assert fitted.encoder is not None
    values = texts(column)
    known = np.flatnonzero(values.is_valid().to_numpy(zero_copy_only=False))
    out = np.full((len(values), fitted.size), np.nan)
    given = values.drop_null().to_pylist()
    out[known] = text_vectors(fitted.encoder, given, encoder_key(fitted.column))
    return out


def long_text_notes(columns: Sequence[FittedColumn], table: pa.Table) -> list[Note]:
    """Notes on the texts that have more tokens than their encoder reads."""
    from raymtl.encoders.texts.opened import open_same

    notes = []
    for column in columns:
        if column.encoder is None:
            continue
        model = open_same(column.encoder, encoder_key(column.column))
        if model.max_tokens is None:
            continue
        known = texts(table[column.column]).drop_null()
        num_long = model.num_long(known.to_pylist())
        if num_long:
            text = (
                f"{num_long:,} of {len(known):,} texts have more than the {model.max_tokens} "
                f"tokens that {column.encoder.model} reads, and are cut off there"
            )
            key = f"{encoder_key(column.column)}.max_tokens"
            notes.append(Note(place=columns_named([column.column]), text=text, key=key))
    return notes


def absolute_models(inputs: Any) -> Any:
    """`data.inputs` with the whole paths of the folders that it names. Raises UserError for a
    place that is no folder of this machine.
    """
    if not isinstance(inputs, Mapping):
        return inputs
    placed = {}
    for name, given in inputs.items():
        if isinstance(given, TextInput) and given.encoder.is_folder:
            key = f"{encoder_key(name)}.model"
            path = absolute(given.encoder.model, key)
            if "://" in path:
                raise UserError(
                    f"{key}: expected a folder of this machine or hub:OWNER/REPOSITORY, got a URL. "
                    "Copy the model to a folder."
                )
            encoder = given.encoder.model_copy(update={"model": path})
            given = given.model_copy(update={"encoder": encoder})
        placed[name] = given
    return placed
