"""Outputs with a value for every pixel: the decoder that makes them of maps."""

from torch import Tensor, nn
from torch.nn import functional as F

from raymtl.types import Task

GAIN = 5.0
"""Of means over places, in most of which nothing is seen."""


class Decoder(nn.Module):
    """Maps of an encoder, flattened [N, C * h * w] -> maps [N, channels, *size] of another
    resolution.

    A 3x3 convolution and ReLU, repeated after each doubling of the resolution as long as this stays
    at or below half of `size`; then a 1x1 convolution, and bilinear interpolation to `size`.
    """

    def __init__(
        self, shape: tuple[int, ...], channels: int, size: tuple[int, int], width: int
    ) -> None:
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


class OverPlaces(nn.Module):
    """Maps, flattened [N, C * h * w]: a 3x3 convolution and GELU, the mean over places, then a head
    of `width`.
    """

    def __init__(self, shape: tuple[int, ...], head: nn.Module, width: int) -> None:
        super().__init__()
        self.shape = shape
        self.own = nn.Conv2d(shape[0], width, 3, padding=1)
        self.head = head

    def forward(self, features: Tensor) -> Tensor:
        # Not ReLU: what all places are told alike would soon leave none of its units alive.
        found: Tensor = self.head(
            GAIN * F.gelu(self.own(features.unflatten(1, self.shape))).mean((2, 3))
        )
        return found


def over_places(task: Task, width: int = 64) -> Task:
    """The same task, whose head reads the mean over the places of maps where an encoder keeps them.

    What it says is then a sum of what the places say, as a count is, wherever things are; a head of
    the features of all places has h * w times as many weights. Each place is read by a convolution
    of the head's own before the mean is taken, for norms in the encoder take the mean and the
    spread over places out of the features, and with these how much there is.
    """

    def head(shape: tuple[int, ...]) -> nn.Module:
        if len(shape) == 3:
            return OverPlaces(shape, task.head((width,)), width)
        return task.head(shape)

    return task._replace(head=head)


def resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """[N, C, h, w] -> [N, C, *size] by bilinear interpolation."""
    if maps.shape[-2:] == size:
        return maps
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
