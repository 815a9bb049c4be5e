"""torchvision's resnet18 with stochastic depth (Huang et al., 2016, arXiv:1603.09382):
y = relu(x + m f(x) / (1 - p_l)), p_l = p l / L for the l-th of L blocks.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet

from raymtl.encoders.dropout import DropResidual

BLOCKS = [2, 2, 2, 2]


class Block(BasicBlock):  # type: ignore[misc] # torchvision has no types
    """torchvision's block, whose residual may be dropped."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.depth = DropResidual(0.0)

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        if self.downsample is not None:
            identity = self.downsample(x)
        residual = self.relu(self.bn1(self.conv1(x)))
        residual = self.depth(self.bn2(self.conv2(residual)))
        y: Tensor = self.relu(residual + identity)
        return y


def residual_network(norm_layer: Callable[[int], nn.Module], drop_path: float) -> ResNet:
    """The network, untrained; `drop_path` is the share of the last block."""
    network = ResNet(Block, BLOCKS, num_classes=1, norm_layer=norm_layer)
    blocks = [module for module in network.modules() if isinstance(module, Block)]
    for number, block in enumerate(blocks, start=1):
        block.depth.p = drop_path * number / len(blocks)
    return network
