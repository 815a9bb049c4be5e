"""Residual network of 18 layers (He et al., 2015, arXiv:1512.03385), from torchvision."""

from typing import Annotated, Literal

from pydantic import Field
from torch import nn

from raymtl.encoders.base import Encoder
from raymtl.encoders.dropout import Share
from raymtl.encoders.norm import NormedSpec
from raymtl.encoders.pictures import picture_shape

NUM_GROUPS = 32
LEAST = {"small": 8, "imagenet": 32}  # pixels a side: what remains is one pixel


class ResNet18Spec(NormedSpec):
    """torchvision's resnet18, untrained, in five stages: the stem and the four groups of residual
    blocks.

    `stem: imagenet` is the 7x7 convolution of stride 2 with max pooling, for large pictures;
    `small` is a 3x3 convolution of stride 1 in its place, for pictures under 64 pixels. The last
    stage ends in global average pooling, so that 512 features are left of a picture of any size;
    with `pooled: false` it leaves its maps, which tasks with an output for every pixel need.
    `dilated` is how many of the last groups keep the resolution of the one before, their 3x3
    convolutions spread over as much of the picture (Yu et al., 2017, arXiv:1705.09914): with `stem:
    imagenet` 2 gives maps of an eighth of the picture's sides, where 0 gives a 32nd. `norm: group`
    has 32 groups. `dropout` drops outputs of the last stage alone. Deviation from the first paper:
    that norm is the default, where it has batch normalisation with running statistics.

    Example: `encoder: {name: resnet18, pooled: false, dilated: 2}`
    """

    name: Literal["resnet18"] = "resnet18"
    stem: Literal["imagenet", "small"] = "small"
    pooled: bool = True
    dilated: Annotated[int, Field(ge=0, le=3)] = 0
    drop_path: Share = 0.0
    """The share of examples whose last residual is dropped in training; the share of block l of 8
    is l/8 of it (stochastic depth, arXiv:1603.09382).
    """

    def build(self, input_shape: tuple[int, ...], inner_steps: int = 0) -> Encoder:
        """For pictures [N, channels, height, width]; `inner_steps` are those that norms tell apart.

        Raises UserError if the inputs are not pictures, or too small: 8 pixels a side with the
        small stem, 32 with that for ImageNet.
        """
        # Here and not above: everything else runs where torchvision is not installed.
        from raymtl.encoders.residual import residual_network

        channels, _, _ = picture_shape(self.name, input_shape, LEAST[self.stem])

        def norm_layer(channels: int) -> nn.Module:
            return next(iter(self.norms(channels, NUM_GROUPS, inner_steps)), nn.Identity())

        network = residual_network(norm_layer, self.drop_path)
        for module in network.modules():
            if isinstance(module, nn.ReLU):
                module.inplace = False  # Transforms of functions have no place to overwrite.
        groups = [network.layer2, network.layer3, network.layer4]
        for step, group in enumerate(groups[len(groups) - self.dilated :]):
            _dilate(group, 2 ** (step + 1))
        if self.stem == "imagenet":
            convolution = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
            stem_pooling = [network.maxpool]
        else:
            convolution = nn.Conv2d(channels, 64, 3, stride=1, padding=1, bias=False)
            stem_pooling = []
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        if self.pooled:
            last_pooling = [network.avgpool]
        else:
            last_pooling = []
        stages = [
            nn.Sequential(convolution, network.bn1, network.relu, *stem_pooling),
            network.layer1,
            network.layer2,
            network.layer3,
            nn.Sequential(network.layer4, *last_pooling, *self.dropouts()),
        ]
        return Encoder(stages, input_shape)


def _dilate(group: nn.Module, factor: int) -> None:
    """Takes the stride of 2 away from a group of blocks; `factor` is how much finer its maps are
    then than they were.

    What it made of every pixel it still makes of every `factor`-th one, where there are no norms.
    """
    for module in group.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
            spread = factor // module.stride[0]  # what comes before the stride is not as much finer
            module.dilation = module.padding = (spread, spread)
        if isinstance(module, nn.Conv2d):
            module.stride = (1, 1)
