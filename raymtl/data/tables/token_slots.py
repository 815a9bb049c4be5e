"""Columns of texts whose encoder is trained: an input has the numbers of their tokens."""

from raymtl.data.tables.fitted_column import FittedColumn
from raymtl.encoders.texts.token_slot import TokenSlot


def encoder_key(column: str) -> str:
    """The dotted key of a column's encoder."""
    return f"data.inputs.{column}.encoder"


def token_slot(column: FittedColumn, start: int) -> TokenSlot | None:
    """What makes vectors of the column's tokens in the model; None for other columns."""
    if column.encoder is None or column.encoder.frozen:
        return None
    return TokenSlot(start, column.size, column.encoder, encoder_key(column.column))
