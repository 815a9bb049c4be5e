"""What the mixtures of experts have in common: experts side by side, and a softmax gate over their
outputs.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Experts(nn.ModuleList):
    """Modules that all see the same input: [N, ...] -> as many outputs [N, ...]."""

    def forward(self, inputs: Tensor) -> list[Tensor]:
        return [expert(inputs) for expert in self]


class SoftmaxGate(nn.Module):
    """Mixes experts by softmax(W x) of the flattened input x, as Ma et al. (2018) do; there is no
    bias.
    """

    def __init__(self, input_shape: Sequence[int], num_experts: int) -> None:
        super().__init__()
        self.linear = nn.Linear(math.prod(input_shape), num_experts, bias=False)

    def weights(self, inputs: Tensor) -> Tensor:
        """[N, *input_shape] -> [N, E], each row in the simplex."""
        gates: Tensor = self.linear(inputs.flatten(1)).softmax(-1)
        return gates

    def forward(self, inputs: Tensor, experts: Sequence[Tensor]) -> Tensor:
        """The mixture [N, ...] of E outputs [N, ...]."""
        return mixture(self.weights(inputs), experts)


def mixture(weights: Tensor, experts: Sequence[Tensor]) -> Tensor:
    """The sum over experts of weights [N, E] times outputs, E times [N, ...]: [N, ...]."""
    return torch.einsum("ne,ne...->n...", weights, torch.stack(list(experts), 1))
