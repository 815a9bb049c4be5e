"""Networks of timm and torchvision as encoders: their stages, their weights, their batch norms."""

from raymtl.encoders.pretrained.base import PretrainedSpec
from raymtl.encoders.pretrained.network import PretrainedEncoder
from raymtl.encoders.pretrained.timm_spec import TimmSpec
from raymtl.encoders.pretrained.torchvision_spec import TorchvisionSpec

__all__ = ["PretrainedEncoder", "PretrainedSpec", "TimmSpec", "TorchvisionSpec"]
