"""Multilayer perceptron: one stage per hidden layer."""

import math
from itertools import pairwise
from typing import Literal

from pydantic import PositiveInt
from torch import nn

from raymtl.encoders.base import Encoder
from raymtl.encoders.norm import Norm, NormedSpec

NUM_GROUPS = 4


class MLPSpec(NormedSpec):
    """Flattens its input and applies linear layers, each followed by its normalisation and ReLU.

    `norm: group` has 4 groups. With `hidden: []` the heads read the input itself, so that each task
    is a linear model.

    Example: `encoder: {name: mlp, hidden: [64, 64], norm: layer}`
    """

    name: Literal["mlp"] = "mlp"
    hidden: tuple[PositiveInt, ...] = (128, 128)
    norm: Norm = "none"

    def build(self, input_shape: tuple[int, ...], inner_steps: int = 0) -> Encoder:
        """For inputs [N, *input_shape]; `inner_steps` are those that norms tell apart."""
        widths = (math.prod(input_shape), *self.hidden)
        if not self.hidden:
            linear_model = Encoder([nn.Flatten(1)], input_shape, [widths])
            linear_model.has_stages = False
            return linear_model
        stages = []
        for before, after in pairwise(widths):
            linear = nn.Linear(before, after, bias=self.biased)
            stages.append(
                nn.Sequential(
                    nn.Flatten(1), linear, *self.norms(after, NUM_GROUPS, inner_steps), nn.ReLU()
                )
            )
        # Linear layers without numbers load torch._dynamo, which takes seconds.
        return Encoder(stages, input_shape, [(width,) for width in self.hidden])
