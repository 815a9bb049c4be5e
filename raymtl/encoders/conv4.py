"""The four-block network of few-shot learning (Vinyals et al., 2016, arXiv:1606.04080)."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt
from torch import nn

from raymtl.encoders.base import Encoder
from raymtl.encoders.norm import NormedSpec
from raymtl.encoders.pictures import picture_shape

NUM_BLOCKS = 4
NUM_GROUPS = 4


class Conv4Spec(NormedSpec):
    """Four blocks of a 3x3 convolution, normalisation, ReLU and 2x2 max pooling; one stage per
    block.

    `width` is the number of channels of all of them; `norm: group` has 4 groups. Deviation from the
    paper: that is the default, where the paper has batch normalisation with running statistics.

    Example: `encoder: {name: conv4, width: 32}`
    """

    name: Literal["conv4"] = "conv4"
    width: Annotated[PositiveInt, Field(multiple_of=NUM_GROUPS)] = 64

    def build(self, input_shape: tuple[int, ...], inner_steps: int = 0) -> Encoder:
        """For pictures [N, channels, height, width]; `inner_steps` are those that norms tell apart.

        Raises UserError if the inputs are not pictures, or too small to be halved four times.
        """
        before, _, _ = picture_shape(self.name, input_shape, 2**NUM_BLOCKS)
        stages = []
        for _ in range(NUM_BLOCKS):
            convolution = nn.Conv2d(before, self.width, 3, padding=1, bias=self.biased)
            stages.append(
                nn.Sequential(
                    convolution,
                    *self.norms(self.width, NUM_GROUPS, inner_steps),
                    nn.MaxPool2d(2),  # of a quarter of the values, ReLU is the same after it
                    nn.ReLU(),
                    *self.dropouts(),
                )
            )
            before = self.width
        return Encoder(stages, input_shape)
