"""One-stage detection without anchors (FCOS: Tian et al., 2019, arXiv:1904.01355).

Every place of a map says whether it lies in an object of a class, how far the four sides of its box
are, and how near it is to the middle: L = (sum focal(p, c) + sum over places in objects of 1 -
GIoU(box, b) + BCE(centreness)) / number of such places; the score of a box is sqrt(p * centreness).

Deviations from the paper: there is one level of maps instead of five, so boxes of all sizes share
one map, and the place nearest to the middle of a box answers for it whatever its size; one tower of
`depth` convolutions of `width` serves all three outputs, instead of two of four by 256; distances
are by softplus instead of exp; losses are divided by the places in objects of each picture, not of
the batch.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raymtl.tasks.boxes import (
    IOU_THRESHOLDS,
    area,
    average_precision,
    generalised_iou,
    matched,
    overlapping,
    suppressed,
)
from raymtl.tasks.scores import counted
from raymtl.tasks.tower import Tower
from raymtl.types import LabelStatistics, Metric, Task, TaskKind

IGNORED = -2
"""Class of a difficult object, which counts neither as found nor as missed: -2 - c where it is of
class c.
"""
RADIUS = 1.5  # strides from the middle of a box, within which a place answers for it
RARE = 0.01  # probability of a class at first: most places are background
CANDIDATES = 300  # boxes a picture before suppression, and
MOST = 100  # after it
LEAST_SCORE = 0.05
NUM_BINS = 200  # of the score, for the average precision


class DetectionKind(TaskKind):
    """Targets are boxes with their classes."""

    name = "detection"
    label_form = "boxes"
    is_dense = True
    has_boxes = True

    def make(self, name: str, labels: LabelStatistics, size: tuple[int, int]) -> Task:
        return detection(name, labels.num_classes, size, stride=labels.stride or 8)

    def summarise(self, target: np.ndarray, classes: Sequence[str]) -> dict[str, float]:
        return {name: int((target[..., 0] == number).sum()) for number, name in enumerate(classes)}


DETECTION = DetectionKind()


class Detection(NamedTuple):
    """Boxes of pictures of one size, as places on a map see them."""

    num_classes: int
    size: tuple[int, int]
    """Height and width of a picture, in the pixels of the boxes."""
    places: tuple[int, int]
    """Rows and columns of the map."""
    overlap: float

    def head(self, shape: tuple[int, ...], width: int, depth: int) -> nn.Module:
        """Maps [N, num_classes + 5, *places]: class logits, distances to the sides, centreness."""
        tower = Tower(shape, self.num_classes + 5, self.places, width, depth)
        assert tower.last.bias is not None
        nn.init.constant_(tower.last.bias[: self.num_classes], -math.log((1 - RARE) / RARE))
        return tower

    @property
    def stride(self) -> tuple[float, float]:
        """Pixels between places, across and down."""
        return self.size[1] / self.places[1], self.size[0] / self.places[0]

    def middles(self, like: Tensor) -> Tensor:
        """Of the places, [L, 2]: x and y in pixels."""
        across, down = self.stride
        rows, columns = (torch.arange(number).to(like) + 0.5 for number in self.places)
        y, x = torch.meshgrid(rows * down, columns * across, indexing="ij")
        return torch.stack([x.flatten(), y.flatten()], 1)

    def parts(self, prediction: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Class logits [N, L, K], boxes [N, L, 4] and centreness logits [N, L]."""
        flat = prediction.flatten(2).transpose(1, 2)
        logits, sides, centreness = flat.split([self.num_classes, 4, 1], -1)
        middles = self.middles(prediction)
        # Not exp, as the paper has it: an inner loop with a bold rate would leave the range of
        # numbers.
        away = F.softplus(sides) * flat.new_tensor(self.stride).repeat(2)
        return (
            logits,
            torch.cat([middles - away[..., :2], middles + away[..., 2:]], -1),
            centreness[..., 0],
        )

    def assigned(self, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What each place answers for: classes [N, L, K] in 0 and 1, whether it answers for a box
        [N, L], which.

        The smallest of the boxes that it lies in, not further than `RADIUS` strides from their
        middle. A box also has the place that is nearest to its middle, so that one smaller than a
        stride is not lost.
        """
        there = target[..., 0] >= 0  # [N, M]
        boxes = torch.where(there[..., None], target[..., 1:], 0.0)
        middles = self.middles(target)
        corners = boxes[:, None]  # [N, 1, M, 4]
        sides = torch.cat(
            [middles[:, None] - corners[..., :2], corners[..., 2:] - middles[:, None]], -1
        )
        away = (middles[:, None] - (corners[..., :2] + corners[..., 2:]) / 2) / target.new_tensor(
            self.stride
        )
        nearest = away.square().sum(-1).argmin(1, keepdim=True)  # [N, 1, M]
        inside = (sides.amin(-1) > 0) & (away.abs().amax(-1) <= RADIUS)
        number = torch.arange(len(middles), device=target.device)[:, None]
        inside = (inside | (nearest == number)) & there[:, None]  # [N, L, M]
        least, which = torch.where(inside, area(boxes)[:, None], torch.inf).min(-1)  # [N, L]
        answers = least < torch.inf
        own = boxes.gather(1, which[..., None].expand(-1, -1, 4))
        label = target[..., 0].gather(1, which)
        classes = label[..., None] == torch.arange(self.num_classes, device=target.device)
        return (classes & answers[..., None]).to(target), answers, own

    def open(self, target: Tensor) -> Tensor:
        """Where a difficult object of a class is, so that not to find it there is not wrong, [N, L,
        K].
        """
        middles = self.middles(target)[:, None]
        inside = ((middles > target[:, None, :, 1:3]) & (middles < target[:, None, :, 3:])).all(
            -1
        )  # [N, L, M]
        classes = torch.arange(self.num_classes, device=target.device)
        of_class = IGNORED - target[..., 0, None] == classes  # [N, M, K]
        return (inside[..., None] & of_class[:, None]).any(2)

    def centreness(self, boxes: Tensor) -> Tensor:
        """sqrt(min(l, r) / max(l, r) * min(t, b) / max(t, b)) of the places in their boxes [N, L,
        4].
        """
        middles = self.middles(boxes)
        before, after = (
            (middles - boxes[..., :2]).clamp(min=0),
            (boxes[..., 2:] - middles).clamp(min=0),
        )
        balance = torch.minimum(before, after) / torch.maximum(before, after).clamp(min=1e-6)
        return balance.prod(-1).sqrt()

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Of each picture, [N]."""
        from torchvision.ops import sigmoid_focal_loss

        target = target.to(prediction)
        logits, boxes, centreness = self.parts(prediction)
        classes, answers, own = self.assigned(target)
        focal = torch.where(
            self.open(target) & (classes == 0), 0.0, sigmoid_focal_loss(logits, classes)
        ).sum((1, 2))
        apart = 1 - generalised_iou(boxes, own)
        off = F.binary_cross_entropy_with_logits(centreness, self.centreness(own), reduction="none")
        return (focal + torch.where(answers, apart + off, 0.0).sum(1)) / answers.sum(1).clamp(min=1)

    def found(self, prediction: Tensor) -> Tensor:
        """The best boxes, [N, MOST or less, 6]: class, corners and score, by falling score; class
        -1 where none.
        """
        logits, boxes, centreness = self.parts(prediction.detach())
        scores = (logits.sigmoid() * centreness.sigmoid()[..., None]).sqrt().flatten(1)
        scores, index = scores.topk(min(CANDIDATES, scores.shape[1]), 1)
        place, label = index // self.num_classes, index % self.num_classes
        height, width = self.size
        own = boxes.gather(1, place[..., None].expand(-1, -1, 4)).clamp(min=0)
        own = torch.minimum(own, own.new_tensor([width, height, width, height]))
        good = suppressed(own, scores, label, self.overlap) & (scores > LEAST_SCORE)
        scores, order = torch.where(good, scores, -1.0).topk(min(MOST, scores.shape[1]), 1)
        rows = torch.cat([label[..., None].to(own), own], -1).gather(
            1, order[..., None].expand(-1, -1, 5)
        )
        none = scores < 0
        return torch.cat(
            [torch.where(none[..., None], -1.0, rows), torch.where(none, 0.0, scores)[..., None]],
            -1,
        )

    def precision(self, thresholds: tuple[float, ...]) -> Metric:
        """The mean over classes and over thresholds of the IoU of the average precision."""
        num_classes, num_rows = (
            self.num_classes,
            len(thresholds) + 2,
        )  # and all found boxes, and how many there are

        def update(prediction: Tensor, target: Tensor) -> Tensor:
            found, target = self.found(prediction), target.to(prediction)
            true = matched(found[..., :5], target, target.new_tensor(thresholds))  # [N, T, D]
            there = (found[..., 0] >= 0) & ~(overlapping(found, ignored(target)) & ~true.any(1))
            own = found[..., 0].clamp(min=0).long() * num_rows * NUM_BINS
            score = (found[..., 5] * NUM_BINS).long().clamp(0, NUM_BINS - 1)
            wanted = target[..., 0] >= 0
            label = target[..., 0].clamp(min=0).long() * num_rows * NUM_BINS
            index = torch.cat(
                [
                    *(own + row * NUM_BINS + score for row in range(len(thresholds) + 1)),
                    label + (num_rows - 1) * NUM_BINS,
                ],
                1,
            )
            rows = torch.cat([true & there[:, None], there[:, None]], 1).flatten(1)
            return counted(
                index,
                torch.cat([rows, wanted], 1).to(prediction),
                num_classes * num_rows * NUM_BINS,
            )

        def compute(sums: Tensor, _: Tensor) -> Tensor:
            counts = sums.unflatten(-1, (num_classes, num_rows, NUM_BINS))
            true, found, number = counts[..., :-2, :], counts[..., -2:-1, :], counts[..., -1, 0]
            precisions = average_precision(
                true, found.expand_as(true), number[..., None].expand(true.shape[:-1])
            )
            return precisions.mean(-1).nanmean(-1)

        return Metric(update, True, state_size=num_classes * num_rows * NUM_BINS, compute=compute)

    @property
    def metrics(self) -> Mapping[str, Metric]:
        """COCO's two."""
        return {"map": self.precision(IOU_THRESHOLDS), "map_50": self.precision(IOU_THRESHOLDS[:1])}


def ignored(target: Tensor) -> Tensor:
    """The difficult objects of a target [N, M, 5] under their own classes, -1 in place of all
    others.
    """
    return torch.cat([(IGNORED - target[..., :1]).clamp(min=-1), target[..., 1:]], -1)


def detection(  # noqa: PLR0913  four of them have defaults
    name: str,
    num_classes: int,
    size: tuple[int, int],
    *,
    stride: int = 8,
    overlap: float = 0.6,
    width: int = 64,
    depth: int = 3,
) -> Task:
    """Boxes and their classes; targets [N, M, 5]: class, x1, y1, x2, y2 in pixels of a picture of
    `size`, height and width.

    Rows of class -1 fill up what a picture has fewer boxes; a picture all of whose rows are -1
    shows none, and one whose boxes are unknown is masked. One in `stride` pixels is a place that
    answers for boxes; of boxes of one class that overlap by more than `overlap` the best is kept.
    `width` is that of the decoder.

    Metrics: `map`, COCO's average precision, is the mean over classes and over the IoU thresholds
    0.5, 0.55 .. 0.95; `map_50` is that at 0.5 alone. Both are of at most 100 boxes a picture with
    scores above 0.05. Boxes are ranked by their exact scores within a picture, and by 200 bins of
    scores across pictures: those that share a bin count as found together, which never makes the
    average precision higher. `decode` gives [N, 100, 6]: class or -1, corners, score.

    A difficult object of class c has the class -2 - c: it is neither to be found nor is it wrong to
    find it, as Pascal VOC scores. A box found is left out of the score where it overlaps one of its
    class by 0.5 or more and is true at no threshold; COCO decides threshold by threshold.
    """
    places = (math.ceil(size[0] / stride), math.ceil(size[1] / stride))
    spec = Detection(num_classes, size, places, overlap)
    return Task(
        name=name,
        kind=DETECTION,
        out_features=num_classes + 5,
        head=lambda shape: spec.head(shape, width, depth),
        loss=spec.loss,
        metrics=spec.metrics,
        decode=spec.found,
        target_shape=(1, 5),
    )
