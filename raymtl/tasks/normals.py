"""The direction that the surface faces at every pixel."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from raymtl.tasks.colours import direction_colours
from raymtl.tasks.dense import Decoder
from raymtl.tasks.maps import FittedMaps, MapKind, share_of, vectors
from raymtl.tasks.scores import mean_where, median, pixel_mean
from raymtl.types import LabelStatistics, Task

WITHIN = {"within_22": 22.5, "within_11": 11.25, "within_30": 30.0}  # degrees
NUM_BINS = 1800  # of 180 degrees, for the median
LEAST = 1e-12  # squared length of a prediction, below which it has no direction


class NormalsKind(MapKind):
    """Targets are vectors of length 1, or 0 where there is none."""

    name = "normals"
    dtype = np.float16
    channels = (3,)
    turns_with_view = True

    def make(self, name: str, labels: LabelStatistics, size: tuple[int, int]) -> Task:
        return normals(name, size)

    def encode(
        self, task: str, fitted: FittedMaps, values: np.ndarray, map_name: str
    ) -> np.ndarray:
        """[3, H, W] float32. Colours that are no direction, such as black and the grey of 127,
        stand for none.
        """
        directions = vectors(values, map_name)
        lengths = np.linalg.norm(directions, axis=0)
        if values.dtype == np.uint8:
            valid = (lengths > 0.5) & (lengths < 1.5)
        else:
            valid = lengths > 0
        return np.where(valid, directions / np.where(valid, lengths, 1), 0)

    def mirrored(self, target: Tensor) -> Tensor:
        return target * target.new_tensor([-1, 1, 1])[:, None, None]

    def render(self, target: np.ndarray) -> np.ndarray:
        return direction_colours(target)

    def summarise(self, target: np.ndarray, classes: Sequence[str]) -> dict[str, float]:
        return {"labelled": share_of((target != 0).any(1))}


NORMALS = NormalsKind()


def _valid(target: Tensor) -> Tensor:
    return target.square().sum(1) > 0


def _direction(vectors: Tensor) -> Tensor:
    return vectors * (vectors.square().sum(1, keepdim=True) + LEAST).rsqrt()


def _cosine(prediction: Tensor, target: Tensor) -> Tensor:
    truth = torch.where(_valid(target)[:, None], target, 0.0)
    return (_direction(prediction) * _direction(truth)).sum(1)


def _loss(prediction: Tensor, target: Tensor) -> Tensor:
    return mean_where(1 - _cosine(prediction, target), _valid(target))


def _angle(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The angles in degrees, and where they are valid."""
    return _cosine(prediction, target).clamp(-1, 1).acos().rad2deg(), _valid(target)


def _within(degrees: float, prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    angles, valid = _angle(prediction, target)
    return (angles < degrees).to(angles), valid


def normals(name: str, size: tuple[int, int], *, width: int = 32) -> Task:
    """1 - cosine of the angle at every pixel; targets are vectors of any length [N, 3, *size], 0 or
    nan where none.

    The loss of a picture is the mean over its valid pixels (see `segmentation`); one without any
    counts as unlabelled.

    Metrics, over all valid pixels: the share whose angle is below 22.5, 11.25 and 30 degrees
    (`within_22`, `within_11`, `within_30`); `mean_angle`, and `median_angle` from a histogram of
    bins of 0.1 degree, both in degrees. `width` is that of the decoder.
    """

    shares = {key: pixel_mean(partial(_within, degrees), True) for key, degrees in WITHIN.items()}
    return Task(
        name=name,
        kind=NORMALS,
        out_features=3,
        head=lambda shape: Decoder(shape, 3, size, width),
        loss=_loss,
        metrics={
            **shares,
            "mean_angle": pixel_mean(_angle, False),
            "median_angle": median(_angle, 180.0, NUM_BINS),
        },
        decode=_direction,
        target_shape=(3, *size),
        label_mask=lambda target: _valid(target).flatten(1).any(1),
    )
