"""A small convolutional encoder: one stage per convolution."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt
from torch import nn

from raymtl.encoders.base import Encoder
from raymtl.encoders.norm import NormedSpec
from raymtl.encoders.pictures import picture_shape
from raymtl.types import UserError

NUM_GROUPS = 4
Channels = Annotated[PositiveInt, Field(multiple_of=NUM_GROUPS)]


class ConvSpec(NormedSpec):
    """3x3 convolutions of stride 2, each followed by its normalisation and ReLU.

    `norm: group` has 4 groups.

    Example: `encoder: {name: conv, channels: [16, 32]}`
    """

    name: Literal["conv"] = "conv"
    channels: Annotated[tuple[Channels, ...], Field(min_length=1)] = (16, 32, 32)

    def build(self, input_shape: tuple[int, ...], inner_steps: int = 0) -> Encoder:
        """For pictures [N, channels, height, width]; `inner_steps` are those that norms tell apart.

        Raises UserError if the inputs are not pictures, or too small for the number of stages.
        """
        before, height, width = picture_shape(self.name, input_shape, at_least=1)
        stages = []
        for after in self.channels:
            if min(height, width) < 2:
                raise UserError(
                    f"encoder.channels: {len(self.channels)} stages halve a picture of "
                    f"{input_shape[1:]} to nothing. Name fewer channels."
                )
            norm = self.norms(after, NUM_GROUPS, inner_steps)
            convolution = nn.Conv2d(before, after, 3, stride=2, padding=1, bias=self.biased)
            stages.append(nn.Sequential(convolution, *norm, nn.ReLU(), *self.dropouts()))
            before, height, width = after, (height + 1) // 2, (width + 1) // 2
        return Encoder(stages, input_shape)
