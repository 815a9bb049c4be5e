"""Multilayer perceptron: one stage per hidden layer."""

import math
from itertools import pairwise
from typing import Literal, Self

from pydantic import PositiveInt, model_validator
from torch import nn

from raymtl.encoders.base import Encoder
from raymtl.encoders.norm import Norm, NormedSpec
from raymtl.types import UserError

NUM_GROUPS = 4


class MLPSpec(NormedSpec):
    """Flattens its input and applies linear layers, each followed by its normalisation and ReLU.

    `norm: group` has 4 groups. With `hidden: []` the heads read the input itself, so that each task
    is a linear model.

    Example: `encoder: {name: mlp, hidden: [64, 64], norm: layer, dropout: 0.2}`
    """

    name: Literal["mlp"] = "mlp"
    hidden: tuple[PositiveInt, ...] = (128, 128)
    norm: Norm = "none"

    @model_validator(mode="after")
    def _has_outputs_to_drop(self) -> Self:
        if self.dropout and not self.hidden:
            raise UserError(
                "encoder.dropout: expected 0 with encoder.hidden: [], which has no layer whose "
                f"outputs could be dropped, got {self.dropout}. Leave it away, or name layers."
            )
        return self

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
            norms = self.norms(after, NUM_GROUPS, inner_steps)
            stages.append(nn.Sequential(nn.Flatten(1), linear, *norms, nn.ReLU(), *self.dropouts()))
        # Linear layers without numbers load torch._dynamo, which takes seconds.
        return Encoder(stages, input_shape, [(width,) for width in self.hidden])
