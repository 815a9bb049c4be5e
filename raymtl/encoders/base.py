"""What an encoder is to the sharing architectures: a row of stages."""

from collections.abc import Sequence

from torch import Tensor, nn


class Encoder(nn.Module):
    """Applies its stages one after the other and flattens: [N, *input_shape] -> [N, out_features].

    Architectures that part or mix tasks between the layers walk over `stages` themselves.
    """

    def __init__(self, stages: Sequence[nn.Module], out_features: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.out_features = out_features

    def forward(self, inputs: Tensor) -> Tensor:
        for stage in self.stages:
            inputs = stage(inputs)
        return inputs.flatten(1)
