"""Columns of texts that a pre-trained encoder makes vectors of."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from raymtl.data.tables.columns import texts
from raymtl.data.tables.findings import columns_named
from raymtl.data.tables.schema import FittedColumn
from raymtl.encoders.texts.settings import TextInput
from raymtl.storage.notes import Note
from raymtl.storage.places import absolute
from raymtl.types import UserError


def encoder_key(column: str) -> str:
    """The dotted key of a column's encoder."""
    return f"data.inputs.{column}.encoder"


def text_column(given: TextInput, name: str) -> FittedColumn:
    """The column before anything is summed up. Raises UserError where there is no such encoder."""
    from raymtl.encoders.texts.opened import find_encoder

    found = find_encoder(given.encoder, encoder_key(name))
    return FittedColumn(column=name, role="text", size=found.size, encoder=found)


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
