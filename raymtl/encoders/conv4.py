"""The four-block network of few-shot learning (Vinyals et al., 2016, arXiv:1606.04080)."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt
from torch import nn

from raymtl.encoders.base import Encoder
from raymtl.encoders.pictures import picture_shape
from raymtl.types import Spec

NUM_BLOCKS = 4
NUM_GROUPS = 4


class Conv4Spec(Spec):
    """Four blocks of a 3x3 convolution, normalisation, ReLU and 2x2 max pooling; one stage per block.

    `width` is the number of channels of all of them. Deviation from the paper: `norm: group` is group normalisation
    over 4 groups (arXiv:1803.08494) in the place of batch normalisation, whose running statistics leak the support
    set into the query and whose second-order gradient is wrong under vmap.
    """

    name: Literal["conv4"] = "conv4"
    width: Annotated[PositiveInt, Field(multiple_of=NUM_GROUPS)] = 64
    norm: Literal["group", "none"] = "group"

    def build(self, input_shape: tuple[int, ...]) -> Encoder:
        """For pictures [N, channels, height, width].

        Raises UserError if the inputs are not pictures, or too small to be halved four times.
        """
        before, _, _ = picture_shape(self.name, input_shape, 2**NUM_BLOCKS)
        stages = []
        for _ in range(NUM_BLOCKS):
            norm = [nn.GroupNorm(NUM_GROUPS, self.width)] if self.norm == "group" else []
            convolution = nn.Conv2d(before, self.width, 3, padding=1)
            stages.append(nn.Sequential(convolution, *norm, nn.ReLU(), nn.MaxPool2d(2)))
            before = self.width
        return Encoder(stages, input_shape)
