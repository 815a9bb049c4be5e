"""LeNet-5 (LeCun et al., 1998, Proceedings of the IEEE 86): two convolutions with pooling, then
linear layers.
"""

from itertools import pairwise
from typing import Literal

from pydantic import PositiveInt
from torch import nn

from raymtl.encoders.base import Encoder
from raymtl.encoders.norm import Norm, NormedSpec
from raymtl.encoders.pictures import picture_shape

NUM_GROUPS = 2
LEAST = 16  # pixels a side: ((16 - 4) / 2 - 4) / 2 = 1 remains


class LeNetSpec(NormedSpec):
    """Two 5x5 convolutions without padding, each with ReLU and 2x2 max pooling, then linear layers
    with ReLU.

    `maps` and `hidden` are their widths, and each is one stage. Pictures have at least 16 x 16
    pixels; larger ones, such as the 36 x 36 of MultiMNIST, widen the first linear layer alone.
    Deviations from the paper: ReLU for tanh, max pooling for learned subsampling, and every map of
    the second convolution sees every map of the first. A normalisation, of which `norm: group` has
    2 groups, stands before each ReLU; there is none by default.

    Example: `encoder: {name: lenet, maps: [6, 16], hidden: [84]}`
    """

    name: Literal["lenet"] = "lenet"
    maps: tuple[PositiveInt, PositiveInt] = (6, 16)
    hidden: tuple[PositiveInt, ...] = (120, 84)
    norm: Norm = "none"

    def build(self, input_shape: tuple[int, ...], inner_steps: int = 0) -> Encoder:
        """For pictures [N, channels, height, width]; `inner_steps` are those that norms tell apart.

        Raises UserError if the inputs are not pictures, or too small.
        """
        before, height, width = picture_shape(self.name, input_shape, LEAST)
        stages = []
        for after in self.maps:
            norm = self.norms(after, NUM_GROUPS, inner_steps)
            convolution = nn.Conv2d(before, after, 5, bias=self.biased)
            layers = [convolution, *norm, nn.MaxPool2d(2), nn.ReLU(), *self.dropouts()]
            stages.append(nn.Sequential(*layers))
            before, height, width = after, (height - 4) // 2, (width - 4) // 2
        for narrow, wide in pairwise((before * height * width, *self.hidden)):
            norm = self.norms(wide, NUM_GROUPS, inner_steps)
            linear = nn.Linear(narrow, wide, bias=self.biased)
            layers = [nn.Flatten(1), linear, *norm, nn.ReLU(), *self.dropouts()]
            stages.append(nn.Sequential(*layers))
        return Encoder(stages, input_shape)
