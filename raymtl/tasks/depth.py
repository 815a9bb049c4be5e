"""The distance of every pixel."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raymtl.tasks.colours import depth_colours
from raymtl.tasks.dense import Decoder
from raymtl.tasks.maps import (
    FittedMaps,
    MapFiles,
    MapKind,
    MapSettings,
    flat,
    moments_of,
    share_of,
)
from raymtl.tasks.scores import mean_where, pixel_mean
from raymtl.types import LabelStatistics, Metric, Task, UserError

CLOSE = 1.25  # either of the two divided by the other, at most


class DepthKind(MapKind):
    """Targets are distances, 0 where there is none."""

    name = "depth"
    dtype = np.float32
    settings = ("scale",)

    def make(self, name: str, labels: LabelStatistics, size: tuple[int, int]) -> Task:
        return depth(name, size, mean=labels.means[0], std=labels.stds[0])

    def encode(
        self, task: str, fitted: FittedMaps, values: np.ndarray, map_name: str
    ) -> np.ndarray:
        return _depths(fitted.asked, values, map_name)

    def fit(self, task: str, given: MapSettings, maps: MapFiles) -> dict[str, Any]:
        """Mean and spread over all pixels that have a depth."""

        def of_map(map_name: str, values: np.ndarray) -> tuple[int, float, float] | None:
            depths = _depths(given, values, map_name)
            known = depths[depths > 0].astype(np.float64)
            if not len(known):
                return None
            return len(known), float(known.mean()), float(known.var())

        moments = np.array(maps.read(of_map)).reshape(-1, 3)
        if not len(moments):
            raise UserError(
                f"data.tasks.{task}: {maps.first}: expected depths above 0 in the maps for "
                f"training, got none in {len(maps)}. Correct the maps, or leave the task away."
            )
        counts, means, variances = moments.T
        share = counts / counts.sum()
        mean = float(share @ means)
        std = float((share @ (variances + (means - mean) ** 2)) ** 0.5)
        return {"means": (mean,), "stds": (std or 1.0,)}

    def zoomed(self, target: Tensor, factor: float) -> Tensor:
        return target / factor

    def render(self, target: np.ndarray) -> np.ndarray:
        return depth_colours(target)

    def summarise(self, target: np.ndarray, classes: Sequence[str]) -> dict[str, float]:
        known = target[target > 0].astype(np.float64)
        return {"labelled": share_of(target > 0), **moments_of(known)}


DEPTH = DepthKind()


def _depths(given: MapSettings, values: np.ndarray, map_name: str) -> np.ndarray:
    """[H, W] float32 in the unit that `scale` gives; 0 where the number is 0, negative, infinite or
    nan.
    """
    depths = flat(values, map_name).astype(np.float32) * np.float32(given.scale or 1.0)
    return np.where(np.isfinite(depths) & (depths > 0), depths, np.float32(0))


def _valid(target: Tensor) -> Tensor:
    return target > 0


def _positive(target: Tensor) -> Tensor:
    """The target with 1 in place of every depth that is not valid."""
    return torch.where(_valid(target), target, 1.0)


def _metrics(decode: Callable[[Tensor], Tensor]) -> dict[str, Metric]:
    """The metrics of predictions that `decode` turns into depths."""

    def close(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        depths, truth = decode(prediction), _positive(target)
        is_close = (depths < CLOSE * truth) & (truth < CLOSE * depths)
        return is_close.to(depths), _valid(target)

    def error(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        return (decode(prediction) - _positive(target)).abs(), _valid(target)

    def relative(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        errors, valid = error(prediction, target)
        return errors / _positive(target), valid

    return {
        "delta_1": pixel_mean(close, True),
        "abs_error": pixel_mean(error, False),
        "rel_error": pixel_mean(relative, False),
    }


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

    def decode(prediction: Tensor) -> Tensor:
        return prediction[:, 0] * std + mean

    def loss(prediction: Tensor, target: Tensor) -> Tensor:
        errors = (decode(prediction) - _positive(target)).abs()
        return mean_where(errors / std, _valid(target))

    return Task(
        name=name,
        kind=DEPTH,
        out_features=1,
        head=lambda shape: Decoder(shape, 1, size, width),
        loss=loss,
        metrics=_metrics(decode),
        decode=decode,
        target_shape=size,
        label_mask=lambda target: _valid(target).flatten(1).any(1),
    )
