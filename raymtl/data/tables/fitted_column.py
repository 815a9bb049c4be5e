"""What was found in a column of the inputs: its role, and how it becomes numbers."""

from typing import Literal, Self

from pydantic import NonNegativeInt, PositiveInt, model_validator

from raymtl.data.tables.text_terms import TextRows, unpacked_counts
from raymtl.encoders.texts.settings import FoundTextEncoder
from raymtl.types import Spec, UserError

Role = Literal["number", "category", "text", "vector", "picture"]


class FittedColumn(Spec):
    """How a column becomes numbers: `size` of them, or one picture."""

    column: str
    role: Role
    size: PositiveInt = 1
    mean: float = 0.0
    std: float = 1.0
    categories: tuple[str, ...] = ()
    """The column is then one-hot over these, the last number being for all others."""
    encoder: FoundTextEncoder | None = None
    """The column is then the vectors of its texts, with one mean and one spread of all numbers."""
    places: PositiveInt | None = None
    """Of a column of text without an encoder: how many places its terms are hashed into. The column
    is then `size` / 2 terms, their places first.
    """
    documents: str = ""
    """How many of the rows for training have something at each place, packed."""
    num_texts: NonNegativeInt = 0
    """How many rows these are counted in."""

    @model_validator(mode="after")
    def _readable(self) -> Self:
        if self.is_sparse and self.places is None:
            raise UserError(
                f"data.fitted: column '{self.column}': expected the frequencies of its terms, got "
                "a bag of words that an earlier version found. Train the run again, or prepare "
                "the data again."
            )
        return self

    @property
    def is_sparse(self) -> bool:
        """Whether the column is texts as the places and values of their terms."""
        return self.role == "text" and self.encoder is None

    @property
    def num_places(self) -> int:
        """The places of a column of text."""
        assert self.places is not None
        return self.places

    @property
    def text_rows(self) -> TextRows:
        """By what the terms of a column of text are weighed."""
        return TextRows(unpacked_counts(self.documents), self.num_texts)
