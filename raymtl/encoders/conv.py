"""A small convolutional encoder: one stage per convolution."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt
from torch import nn

from raymtl.encoders.base import Encoder
from raymtl.encoders.pictures import picture_shape
from raymtl.types import Spec, UserError


class ConvSpec(Spec):
    """3x3 convolutions of stride 2, each followed by its normalisation and ReLU.

    `norm: group` is group normalisation over 4 groups (arXiv:1803.08494): it has no running statistics to leak the
    support set into the query, and its second-order gradients are right under vmap, which those of batch
    normalisation with affine weights are not.
    """

    name: Literal["conv"] = "conv"
    channels: Annotated[tuple[Annotated[PositiveInt, Field(multiple_of=4)], ...], Field(min_length=1)] = (16, 32, 32)
    norm: Literal["group", "none"] = "group"

    def build(self, input_shape: tuple[int, ...]) -> Encoder:
        """For pictures [N, channels, height, width].

        Raises UserError if the inputs are not pictures, or too small for the number of stages.
        """
        before, height, width = picture_shape(self.name, input_shape, at_least=1)
        stages = []
        for after in self.channels:
            if min(height, width) < 2:
                raise UserError(
                    f"encoder.channels: {len(self.channels)} stages halve a picture of {input_shape[1:]} to nothing. "
                    "Name fewer channels."
                )
            norm = [nn.GroupNorm(4, after)] if self.norm == "group" else []
            stages.append(nn.Sequential(nn.Conv2d(before, after, 3, stride=2, padding=1), *norm, nn.ReLU()))
            before, height, width = after, (height + 1) // 2, (width + 1) // 2
        return Encoder(stages, input_shape)
