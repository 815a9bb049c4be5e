"""Boxes (x1, y1, x2, y2): overlaps, suppression, matching with the truth, average precision.

Everything runs under vmap, other than `average_precision`, which reads sums.
"""

from typing import Any

import torch
from torch import Tensor

TINY = 1e-7  # of an area, so that empty boxes have an overlap of 0 with each other
IOU_THRESHOLDS = tuple(0.5 + 0.05 * step for step in range(10))
NUM_RECALLS = 101  # at which the precision is read, as COCO does


def area(boxes: Tensor) -> Tensor:
    """[..., 4] -> [...]."""
    return (boxes[..., 2] - boxes[..., 0]).clamp(min=0) * (boxes[..., 3] - boxes[..., 1]).clamp(
        min=0
    )


def overlap(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Intersection over union, and the union; [..., 4] twice -> [...]."""
    corners = torch.cat(
        [torch.maximum(one[..., :2], other[..., :2]), torch.minimum(one[..., 2:], other[..., 2:])],
        -1,
    )
    both = area(corners)
    union = area(one) + area(other) - both
    return both / (union + TINY), union


def generalised_iou(one: Tensor, other: Tensor) -> Tensor:
    """IoU - (hull - union) / hull (Rezatofighi et al., 2019, arXiv:1902.09630), [..., 4] twice ->
    [...].

    Not torchvision's loss, which selects by a mask and so cannot run under vmap.
    """
    iou, union = overlap(one, other)
    hull = area(
        torch.cat(
            [
                torch.minimum(one[..., :2], other[..., :2]),
                torch.maximum(one[..., 2:], other[..., 2:]),
            ],
            -1,
        )
    )
    return iou - (hull - union) / (hull + TINY)


class _Suppression(torch.autograd.Function):
    """torchvision's non-maximum suppression, picture by picture; the axis of vmap is one of
    pictures more.
    """

    @staticmethod
    def forward(boxes: Tensor, scores: Tensor, classes: Tensor, threshold: float) -> Tensor:
        # Here and not above: everything else runs where torchvision is not installed.
        from torchvision.ops import batched_nms

        kept = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
        for index in range(len(kept)):
            # In float32, the lowest that all its implementations take.
            picture = boxes[index].float(), scores[index].float(), classes[index]
            kept[index, batched_nms(*picture, threshold)] = True
        return kept

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def vmap(
        info: Any, in_dims: Any, boxes: Tensor, scores: Tensor, classes: Tensor, threshold: float
    ) -> tuple[Tensor, int]:
        wide = [
            value.movedim(dim, 0)
            if dim is not None
            else value.expand(info.batch_size, *value.shape)
            for value, dim in zip((boxes, scores, classes), in_dims, strict=False)
        ]
        kept = _Suppression.apply(*(value.flatten(0, 1) for value in wide), threshold)
        return kept.unflatten(0, wide[0].shape[:2]), 0


def suppressed(boxes: Tensor, scores: Tensor, classes: Tensor, threshold: float) -> Tensor:
    """Which of D boxes a picture are kept, [N, D]: those that no better one of their class overlaps
    by more.

    boxes [N, D, 4], scores and classes [N, D].
    """
    kept: Tensor = _Suppression.apply(boxes.detach(), scores.detach(), classes, threshold)
    return kept


def matched(found: Tensor, truth: Tensor, thresholds: Tensor) -> Tensor:
    """Which boxes found are true at each threshold of the IoU, [N, T, D], as COCO counts them.

    `found` [N, D, 5] is a class (-1 where there is no box) and corners, the best first; `truth` [N,
    M, 5] alike. Each takes, in its turn, that box of its class which it overlaps most and no better
    one has taken.
    """
    iou, _ = overlap(found[:, :, None, 1:], truth[:, None, :, 1:])
    same = (found[:, :, None, 0] == truth[:, None, :, 0]) & (truth[:, None, :, 0] >= 0)
    iou = torch.where(same, iou, -1.0)  # [N, D, M]
    number = torch.arange(truth.shape[1], device=truth.device)
    free = torch.ones_like(truth[:, None, :, 0]).expand(-1, len(thresholds), -1) > 0  # [N, T, M]
    hits = []
    for own in iou.unbind(1):
        left = torch.where(free, own[:, None], -1.0)
        best, index = left.max(-1)
        hit = best >= thresholds
        free = free & ~(hit[..., None] & (index[..., None] == number))
        hits.append(hit)
    return torch.stack(hits, -1)


def overlapping(found: Tensor, other: Tensor) -> Tensor:
    """Which boxes found [N, D, >= 5] overlap one of `other` [N, M, 5] of their class by the least
    threshold, [N, D].
    """
    iou, _ = overlap(found[:, :, None, 1:5], other[:, None, :, 1:])
    same = (found[:, :, None, 0] == other[:, None, :, 0]) & (other[:, None, :, 0] >= 0)
    return (same & (iou >= IOU_THRESHOLDS[0])).any(-1)


def average_precision(true: Tensor, found: Tensor, number: Tensor) -> Tensor:
    """COCO's average precision, the mean of the best precision at 101 recalls or beyond; nan where
    `number` is 0.

    `true` and `found` [..., B] count true boxes and all found ones by score, from the lowest bin to
    the highest; `number` [...] is how many there are to be found.
    """
    true, found = (counts.flip(-1).cumsum(-1) for counts in (true, found))
    recall = true / number[..., None]
    precision = true / found.clamp(min=1)
    best = precision.flip(-1).cummax(-1).values.flip(-1)
    wanted = torch.linspace(0, 1, NUM_RECALLS, dtype=recall.dtype, device=recall.device)
    place = torch.searchsorted(
        recall.contiguous(), wanted.expand(*recall.shape[:-1], -1).contiguous()
    )
    reached = torch.cat([best, torch.zeros_like(best[..., :1])], -1).gather(-1, place)
    return torch.where(number > 0, reached.mean(-1), torch.nan)
