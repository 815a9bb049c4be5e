"""One class of several for every pixel."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raymtl.tasks.class_maps import encode_classes, fit_classes
from raymtl.tasks.colours import class_colours
from raymtl.tasks.dense import Decoder
from raymtl.tasks.maps import FittedMaps, MapFiles, MapKind, MapSettings, share_of
from raymtl.tasks.scores import counted, mean_where, pixel_mean
from raymtl.types import LabelStatistics, Metric, Task


class SegmentationKind(MapKind):
    """Targets are the numbers of classes, -1 where a pixel is to be ignored."""

    name = "segmentation"
    has_integer_targets = True
    dtype = np.int16
    missing_value = -1
    settings = ("classes", "values", "ignore")

    def make(self, name: str, labels: LabelStatistics, size: tuple[int, int]) -> Task:
        return segmentation(name, labels.num_classes, size)

    def num_classes(self, out_features: int) -> int:
        return out_features

    def encode(
        self, task: str, fitted: FittedMaps, values: np.ndarray, map_name: str
    ) -> np.ndarray:
        return encode_classes(task, fitted, values, map_name)

    def fit(self, task: str, given: MapSettings, maps: MapFiles) -> dict[str, Any]:
        return fit_classes(task, given, maps)

    def render(self, target: np.ndarray) -> np.ndarray:
        return class_colours(target)

    def legend(
        self, target: np.ndarray, classes: Sequence[str]
    ) -> list[tuple[str, tuple[int, int, int]]]:
        entries = []
        for number in np.unique(target[target >= 0]).astype(int).tolist():
            red, green, blue = class_colours(np.array([[number]]))[0, 0].tolist()
            if number < len(classes):
                name = classes[number]
            else:
                name = str(number)
            entries.append((name, (red, green, blue)))
        return entries

    def summarise(self, target: np.ndarray, classes: Sequence[str]) -> dict[str, float]:
        counts = np.bincount(target[target >= 0], minlength=len(classes))
        shares = counts / max(1, counts.sum())
        return {
            "labelled": share_of(target >= 0),
            **dict(zip(classes, shares.tolist(), strict=True)),
        }


SEGMENTATION = SegmentationKind()


def _valid(target: Tensor) -> Tensor:
    return target >= 0


def _loss(logits: Tensor, target: Tensor) -> Tensor:
    valid = _valid(target)
    classes = torch.where(valid, target, 0).long()
    # Not F.cross_entropy, whose ignore_index is one value.
    entropies = -logits.log_softmax(1).gather(1, classes[:, None])[:, 0]
    return mean_where(entropies, valid)


def _hits(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    return (logits.argmax(1) == target).to(logits), _valid(target)


def _mean_iou(num_classes: int) -> Metric:
    """The mean over classes of intersection / union, from a confusion matrix of all pixels."""

    def update(logits: Tensor, target: Tensor) -> Tensor:
        valid = _valid(target)
        index = torch.where(valid, target, 0).long() * num_classes + logits.argmax(1)
        return counted(index, valid.to(logits), num_classes**2)

    def compute(sums: Tensor, _: Tensor) -> Tensor:
        matrix = sums.unflatten(-1, (num_classes, num_classes))
        both = matrix.diagonal(dim1=-2, dim2=-1)
        iou: Tensor = (both / (matrix.sum(-1) + matrix.sum(-2) - both)).nanmean(-1)
        return iou

    return Metric(update, True, state_size=num_classes**2, compute=compute)


def segmentation(name: str, num_classes: int, size: tuple[int, int], *, width: int = 32) -> Task:
    """Cross-entropy of every pixel; targets are integers [N, *size], negative where a pixel is to
    be ignored.

    The loss of a picture is the mean over its valid pixels, and that of a batch the mean over its
    pictures, not over the pixels of all: one with few valid pixels counts as much as another. A
    picture without any counts as unlabelled.

    Metrics: `miou`, the mean over classes of intersection / union, both over the pixels of all
    pictures, where classes neither there nor predicted are left out; `pixel_accuracy` over all
    valid pixels. `width` is that of the decoder.
    """

    return Task(
        name=name,
        kind=SEGMENTATION,
        out_features=num_classes,
        head=lambda shape: Decoder(shape, num_classes, size, width),
        loss=_loss,
        metrics={"miou": _mean_iou(num_classes), "pixel_accuracy": pixel_mean(_hits, True)},
        decode=lambda logits: logits.argmax(1),
        target_shape=size,
        label_mask=lambda target: _valid(target).flatten(1).any(1),
    )
