"""The head of detection: the outputs for every place of a feature map."""

import math

from torch import Tensor, nn

from raymtl.tasks.dense import resized

NUM_GROUPS = 8  # of channels that are normalised together


class Tower(nn.Module):
    """Maps of an encoder, flattened [N, C * h * w] -> maps [N, channels, *places].

    They are interpolated to the places first, so that small objects are told apart where places are
    denser than the maps; then `depth` 3x3 convolutions, each with group norm and ReLU, and a 1x1
    convolution.
    """

    def __init__(
        self, shape: tuple[int, ...], channels: int, places: tuple[int, int], width: int, depth: int
    ) -> None:
        super().__init__()
        self.shape, self.places = shape, places
        layers: list[nn.Module] = []
        for index in range(depth):
            convolution = nn.Conv2d(width if index else shape[0], width, 3, padding=1, bias=False)
            layers += [convolution, nn.GroupNorm(math.gcd(NUM_GROUPS, width), width), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.last = nn.Conv2d(width, channels, 1)
        nn.init.normal_(self.last.weight, std=0.01)

    def forward(self, features: Tensor) -> Tensor:
        found: Tensor = self.last(
            self.layers(resized(features.unflatten(1, self.shape), self.places))
        )
        return found
