"""The interface of all encoders: a sequence of stages."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Encoder(nn.Module):
    """Applies its stages one after the other and flattens: [N, *input_shape] -> [N, out_features].

    Architectures that separate or mix tasks between layers iterate over `stages`. `shapes` holds
    the shape of one input and then that of each stage's output.
    """

    def __init__(
        self,
        stages: Sequence[nn.Module],
        input_shape: tuple[int, ...],
        shapes: Sequence[tuple[int, ...]] = (),
    ) -> None:
        """`shapes` are those of the stages' outputs; without them the stages are applied once."""
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.shapes = [tuple(input_shape), *shapes]
        self.out_features = math.prod(self.shapes[-1])
        if shapes:
            return
        with torch.no_grad():
            x = torch.zeros(2, *input_shape)  # two, for one has no statistics
            for stage in stages:
                x = stage(x)
                self.shapes.append(tuple(x.shape[1:]))
        self.out_features = x[0].numel()

    def forward(self, inputs: Tensor) -> Tensor:
        for stage in self.stages:
            inputs = stage(inputs)
        return inputs.flatten(1)
