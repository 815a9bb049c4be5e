"""The distance of every pixel."""

import torch
from torch import Tensor

from raymtl.tasks.dense import Decoder
from raymtl.tasks.scores import mean_where, pixel_mean
from raymtl.types import Task

CLOSE = 1.25  # either of the two divided by the other, at most


def depth(
    name: str, size: tuple[int, int], *, mean: float = 0.0, std: float = 1.0, width: int = 32
) -> Task:
    """Absolute error of every pixel in units of `std`; targets are depths [N, *size], 0 or nan
    where there is none.

    `mean` and `std` are those of the training targets; 0 and 1 give the error in the target's own
    unit. The loss of a picture is the mean over its valid pixels (see `segmentation`); one without
    any counts as unlabelled.

    Metrics, over all valid pixels: `delta_1`, the share whose prediction is off by a factor under
    1.25; `abs_error` in the target's unit; `rel_error`, that divided by the depth. `width` is that
    of the decoder.
    """

    def valid(target: Tensor) -> Tensor:
        return target > 0

    def decode(prediction: Tensor) -> Tensor:
        return prediction[:, 0] * std + mean

    def error(prediction: Tensor, target: Tensor) -> Tensor:
        return (decode(prediction) - torch.where(valid(target), target, 1.0)).abs()

    def loss(prediction: Tensor, target: Tensor) -> Tensor:
        return mean_where(error(prediction, target) / std, valid(target))

    def close(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        own, truth = decode(prediction), torch.where(valid(target), target, 1.0)
        return ((own < CLOSE * truth) & (truth < CLOSE * own)).to(own), valid(target)

    def relative(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        return error(prediction, target) / torch.where(valid(target), target, 1.0), valid(target)

    return Task(
        name=name,
        kind="depth",
        out_features=1,
        head=lambda shape: Decoder(shape, 1, size, width),
        loss=loss,
        metrics={
            "delta_1": pixel_mean(close, True),
            "abs_error": pixel_mean(lambda p, t: (error(p, t), valid(t)), False),
            "rel_error": pixel_mean(relative, False),
        },
        decode=decode,
        target_shape=size,
        label_mask=lambda target: valid(target).flatten(1).any(1),
        dense=True,
    )
