"""Outputs with a value for every pixel: the decoder that makes them of maps."""

from torch import Tensor, nn
from torch.nn import functional as F


class Decoder(nn.Module):
    """Maps of an encoder, flattened [N, C * h * w] -> maps [N, channels, *size] of another resolution.

    A 3x3 convolution and ReLU, repeated after each doubling of the resolution as long as this stays at or below half
    of `size`; then a 1x1 convolution, and bilinear interpolation to `size`.
    """

    def __init__(self, shape: tuple[int, ...], channels: int, size: tuple[int, int], width: int) -> None:
        super().__init__()
        before, height, length = self.shape = shape
        self.size = size
        self.steps = nn.ModuleList([nn.Conv2d(before, width, 3, padding=1)])
        while 4 * height <= size[0] and 4 * length <= size[1]:
            height, length = 2 * height, 2 * length
            self.steps.append(nn.Conv2d(width, width, 3, padding=1))
        self.last = nn.Conv2d(width, channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        maps = features.unflatten(1, self.shape)
        for index, step in enumerate(self.steps):
            if index:
                maps = resized(maps, (2 * maps.shape[-2], 2 * maps.shape[-1]))
            maps = step(maps).relu()
        return resized(self.last(maps), self.size)


def resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """[N, C, h, w] -> [N, C, *size] by bilinear interpolation."""
    if maps.shape[-2:] == size:
        return maps
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
