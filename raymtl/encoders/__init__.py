"""Encoders, which expose their stages. The union of their specs is the registry."""

from typing import Annotated

from raymtl.encoders.base import Encoder, EncoderSpecBase, Stage, freeze, from_module, lr_scales
from raymtl.encoders.conv import ConvSpec
from raymtl.encoders.conv4 import Conv4Spec
from raymtl.encoders.lenet import LeNetSpec
from raymtl.encoders.mlp import MLPSpec
from raymtl.encoders.norm import BatchNorm, PerStepNorm
from raymtl.encoders.pretrained import PretrainedEncoder, PretrainedSpec, TimmSpec, TorchvisionSpec
from raymtl.encoders.resnet18 import ResNet18Spec
from raymtl.schema.components import Chosen

EncoderSpec = Annotated[
    ConvSpec | Conv4Spec | LeNetSpec | MLPSpec | ResNet18Spec | TimmSpec | TorchvisionSpec,
    Chosen("encoder"),
]

__all__ = [
    "BatchNorm",
    "Conv4Spec",
    "ConvSpec",
    "Encoder",
    "EncoderSpec",
    "EncoderSpecBase",
    "LeNetSpec",
    "MLPSpec",
    "PerStepNorm",
    "PretrainedEncoder",
    "PretrainedSpec",
    "ResNet18Spec",
    "Stage",
    "TimmSpec",
    "TorchvisionSpec",
    "freeze",
    "from_module",
    "lr_scales",
]
