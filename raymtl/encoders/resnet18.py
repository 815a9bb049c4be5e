"""Residual network of 18 layers (He et al., 2015, arXiv:1512.03385), from torchvision."""

from functools import partial
from typing import Literal

from torch import nn

from raymtl.encoders.base import Encoder
from raymtl.encoders.pictures import picture_shape
from raymtl.types import Spec

NUM_GROUPS = 32
LEAST = {"small": 8, "imagenet": 32}  # pixels a side: what remains is one pixel


class ResNet18Spec(Spec):
    """torchvision's resnet18, untrained, in five stages: the stem and the four groups of residual blocks.

    `stem: imagenet` is the 7x7 convolution of stride 2 with max pooling, for large pictures; `small` is a 3x3
    convolution of stride 1 in its place, for pictures under 64 pixels. The last stage ends in global average pooling,
    so that 512 features are left of a picture of any size. Deviation from the paper: group normalisation over 32
    groups (arXiv:1803.08494) in the place of batch normalisation, whose running statistics leak the support set into
    the query and whose second-order gradient is wrong under vmap.
    """

    name: Literal["resnet18"] = "resnet18"
    stem: Literal["imagenet", "small"] = "small"

    def build(self, input_shape: tuple[int, ...]) -> Encoder:
        """For pictures [N, channels, height, width].

        Raises UserError if the inputs are not pictures, or too small: 8 pixels a side with the small stem, 32 with
        that for ImageNet.
        """
        # Here and not above: everything else runs where torchvision is not installed.
        from torchvision.models import resnet18

        channels, _, _ = picture_shape(self.name, input_shape, LEAST[self.stem])
        network = resnet18(weights=None, num_classes=1, norm_layer=partial(nn.GroupNorm, NUM_GROUPS))
        for module in network.modules():
            if isinstance(module, nn.ReLU):
                module.inplace = False  # Transforms of functions have no place to overwrite.
        size, stride, padding = (7, 2, 3) if self.stem == "imagenet" else (3, 1, 1)
        convolution = nn.Conv2d(channels, 64, size, stride, padding, bias=False)
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        pooling = [network.maxpool] if self.stem == "imagenet" else []
        stages = [
            nn.Sequential(convolution, network.bn1, network.relu, *pooling),
            network.layer1,
            network.layer2,
            network.layer3,
            nn.Sequential(network.layer4, network.avgpool),
        ]
        return Encoder(stages, input_shape)
