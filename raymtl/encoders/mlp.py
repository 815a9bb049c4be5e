"""Multilayer perceptron: one stage per hidden layer."""

import math
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, PositiveInt
from torch import nn

from raymtl.encoders.base import Encoder
from raymtl.types import Spec


class MLPSpec(Spec):
    """Flattens its input and applies linear layers with ReLU."""

    name: Literal["mlp"] = "mlp"
    hidden: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (128, 128)

    def build(self, input_shape: tuple[int, ...]) -> Encoder:
        """For inputs [N, *input_shape]."""
        widths = (math.prod(input_shape), *self.hidden)
        stages = [
            nn.Sequential(nn.Flatten(1), nn.Linear(before, after), nn.ReLU()) for before, after in pairwise(widths)
        ]
        return Encoder(stages, input_shape)
