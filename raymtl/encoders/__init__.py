"""Backbones that expose their stages; the union of specs is the registry."""

from typing import Annotated

from pydantic import Field

from raymtl.encoders.base import Encoder
from raymtl.encoders.conv import ConvSpec
from raymtl.encoders.mlp import MLPSpec

EncoderSpec = Annotated[ConvSpec | MLPSpec, Field(discriminator="name")]

__all__ = ["ConvSpec", "Encoder", "EncoderSpec", "MLPSpec"]
