"""Encoders, which expose their stages. The union of their specs is the registry."""

from typing import Annotated

from pydantic import Field

from raymtl.encoders.base import Encoder
from raymtl.encoders.conv import ConvSpec
from raymtl.encoders.conv4 import Conv4Spec
from raymtl.encoders.lenet import LeNetSpec
from raymtl.encoders.mlp import MLPSpec
from raymtl.encoders.norm import BatchNorm, PerStepNorm
from raymtl.encoders.resnet18 import ResNet18Spec

EncoderSpec = Annotated[
    ConvSpec | Conv4Spec | LeNetSpec | MLPSpec | ResNet18Spec, Field(discriminator="name")
]

__all__ = [
    "BatchNorm",
    "Conv4Spec",
    "ConvSpec",
    "Encoder",
    "EncoderSpec",
    "LeNetSpec",
    "MLPSpec",
    "PerStepNorm",
    "ResNet18Spec",
]
