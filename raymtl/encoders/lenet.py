"""LeNet-5 (LeCun et al., 1998, Proceedings of the IEEE 86): two convolutions with pooling, then linear layers."""

from itertools import pairwise
from typing import Literal

from pydantic import PositiveInt
from torch import nn

from raymtl.encoders.base import Encoder
from raymtl.encoders.pictures import picture_shape
from raymtl.types import Spec

LEAST = 16  # pixels a side: ((16 - 4) / 2 - 4) / 2 = 1 remains


class LeNetSpec(Spec):
    """Two 5x5 convolutions without padding, each with ReLU and 2x2 max pooling, then linear layers with ReLU.

    `maps` and `hidden` are their widths, and each is one stage. Pictures have at least 16 x 16 pixels; larger ones,
    such as the 36 x 36 of MultiMNIST, widen the first linear layer alone. Deviations from the paper: ReLU for tanh,
    max pooling for learned subsampling, and every map of the second convolution sees every map of the first.
    """

    name: Literal["lenet"] = "lenet"
    maps: tuple[PositiveInt, PositiveInt] = (6, 16)
    hidden: tuple[PositiveInt, ...] = (120, 84)

    def build(self, input_shape: tuple[int, ...]) -> Encoder:
        """For pictures [N, channels, height, width].

        Raises UserError if the inputs are not pictures, or too small.
        """
        before, height, width = picture_shape(self.name, input_shape, LEAST)
        stages = []
        for after in self.maps:
            stages.append(nn.Sequential(nn.Conv2d(before, after, 5), nn.ReLU(), nn.MaxPool2d(2)))
            before, height, width = after, (height - 4) // 2, (width - 4) // 2
        for narrow, wide in pairwise((before * height * width, *self.hidden)):
            stages.append(nn.Sequential(nn.Flatten(1), nn.Linear(narrow, wide), nn.ReLU()))
        return Encoder(stages, input_shape)
