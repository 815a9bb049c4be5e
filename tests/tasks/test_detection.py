"""Boxes: overlaps, suppression and losses against torchvision, the average precision against COCO's own tools."""

import math

import numpy as np
import pytest
import torch
import torchvision.ops as tv
from torch import Tensor
from torch.func import vmap
from torchmetrics.detection import MeanAveragePrecision

from raymtl.tasks import detection, over_places, regression
from raymtl.tasks.boxes import (
    IOU_THRESHOLDS,
    average_precision,
    generalised_iou,
    matched,
    overlap,
    suppressed,
)
from raymtl.tasks.detection import Detection
from raymtl.types import Task
from tests.narrowing import checked

pytestmark = pytest.mark.usefixtures("float64")

SIZE = (24, 32)


def random_boxes(*shape: int) -> Tensor:
    corner = torch.rand(*shape, 2) * torch.tensor([24.0, 16.0])
    return torch.cat([corner, corner + 1 + torch.rand(*shape, 2) * 12], -1)


def random_truth(number: int, most: int, num_classes: int) -> Tensor:
    return torch.cat(
        [torch.randint(-1, num_classes, (number, most, 1)).double(), random_boxes(number, most)], -1
    )


def test_overlaps_are_torchvision_s() -> None:
    one, other = random_boxes(50), random_boxes(50)
    other[:5] = one[:5]
    torch.testing.assert_close(
        overlap(one, other)[0], tv.box_iou(one, other).diagonal(), rtol=1e-6, atol=1e-8
    )
    wanted = tv.generalized_box_iou(one, other).diagonal()
    torch.testing.assert_close(generalised_iou(one, other), wanted, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(
        1 - generalised_iou(one, other),
        tv.generalized_box_iou_loss(one, other),
        rtol=1e-6,
        atol=1e-7,
    )


def test_suppression_under_vmap_is_torchvisions() -> None:
    boxes, scores, classes = (
        random_boxes(3, 4, 40),
        torch.rand(3, 4, 40),
        torch.randint(2, (3, 4, 40)),
    )
    kept = vmap(lambda b, s, c: suppressed(b, s, c, 0.4))(boxes, scores, classes)
    shared = vmap(lambda s: suppressed(boxes[0], s, classes[0], 0.4))(scores)
    for e in range(3):
        for n in range(4):
            wanted = tv.batched_nms(boxes[e, n], scores[e, n], classes[e, n], 0.4)
            assert kept[e, n].nonzero().flatten().tolist() == wanted.sort().values.tolist()
            wanted = tv.batched_nms(boxes[0, n], scores[e, n], classes[0, n], 0.4)
            assert shared[e, n].nonzero().flatten().tolist() == wanted.sort().values.tolist()
    assert 0.1 < kept.double().mean() < 0.9


def naive_assignment(spec: Detection, truth: Tensor) -> list[tuple[int, list[float]] | None]:
    """For each place of one picture the class and box that it answers for, by loops."""
    middles = [
        ((c + 0.5) * spec.stride[0], (r + 0.5) * spec.stride[1])
        for r in range(spec.places[0])
        for c in range(spec.places[1])
    ]
    found: list[tuple[float, int, list[float]] | None] = [None] * len(middles)
    for label, x1, y1, x2, y2 in truth.tolist():
        if label < 0:
            continue
        centre = (x1 + x2) / 2, (y1 + y2) / 2
        away = [
            max(abs(x - centre[0]) / spec.stride[0], abs(y - centre[1]) / spec.stride[1])
            for x, y in middles
        ]
        squares = [
            ((x - centre[0]) / spec.stride[0]) ** 2 + ((y - centre[1]) / spec.stride[1]) ** 2
            for x, y in middles
        ]
        for place, (x, y) in enumerate(middles):
            inside = x1 < x < x2 and y1 < y < y2 and away[place] <= 1.5
            area = (x2 - x1) * (y2 - y1)
            if inside or place == squares.index(min(squares)):
                own = found[place]
                if own is None or area < own[0]:
                    found[place] = (area, int(label), [x1, y1, x2, y2])
    return [None if own is None else own[1:] for own in found]


def test_places_answer_for_the_boxes_that_loops_find() -> None:
    spec = Detection(3, SIZE, (6, 8), 0.6)
    truth = random_truth(5, 4, 3)
    truth[0, 0] = torch.tensor([1.0, 3.0, 3.0, 3.5, 3.5])  # smaller than a stride
    classes, answers, boxes = spec.assigned(truth)
    for index in range(5):
        wanted = naive_assignment(spec, truth[index])
        assert answers[index].tolist() == [own is not None for own in wanted]
        for place, own in enumerate(wanted):
            if own is None:
                assert classes[index, place].sum() == 0
            else:
                assert classes[index, place].nonzero().flatten().tolist() == [own[0]]
                assert boxes[index, place].tolist() == pytest.approx(own[1])
    assert 0 < answers.double().mean() < 1


def test_every_box_alone_has_a_place() -> None:
    spec = Detection(1, SIZE, (6, 8), 0.6)
    alone = torch.cat([torch.zeros(200, 1, 1), random_boxes(200, 1)], -1)
    alone[:, :, 3:] = alone[:, :, 1:3] + (alone[:, :, 3:] - alone[:, :, 1:3]) * 0.05
    _, answers, boxes = spec.assigned(alone)
    assert answers.any(1).all()
    torch.testing.assert_close(boxes[answers].unique(dim=0), alone[:, 0, 1:].unique(dim=0))


def test_the_loss_is_that_of_torchvision_s_parts() -> None:
    task, spec = detection("a", 3, SIZE, stride=4), Detection(3, SIZE, (6, 8), 0.6)
    prediction, truth = torch.randn(4, 8, 6, 8), random_truth(4, 5, 3)
    truth[3, :, 0] = -1  # shows nothing
    for index, own in enumerate(task.loss(prediction, truth)):
        logits, boxes, centreness = (part[index] for part in spec.parts(prediction))
        wanted = naive_assignment(spec, truth[index])
        answers = {place: answer for place, answer in enumerate(wanted) if answer}
        rows = list(answers)
        label = torch.zeros(48, 3)
        for place, (category, _) in answers.items():
            label[place, category] = 1
        total = tv.sigmoid_focal_loss(logits, label, reduction="sum")
        if rows:
            true = torch.tensor([box for _, box in answers.values()])
            middles = torch.tensor([((p % 8 + 0.5) * 4, (p // 8 + 0.5) * 4) for p in rows])
            sides = torch.cat([middles - true[:, :2], true[:, 2:] - middles], 1).clamp(min=0)
            near = [
                (min(w, e) / max(w, e) * min(n, s) / max(n, s)) ** 0.5
                for w, n, e, s in sides.tolist()
            ]
            total = total + tv.generalized_box_iou_loss(boxes[rows], true, reduction="sum")
            total = total + torch.nn.functional.binary_cross_entropy(
                centreness[rows].sigmoid(), torch.tensor(near), reduction="sum"
            )
        torch.testing.assert_close(own, total / max(len(rows), 1), rtol=1e-6, atol=1e-7)


def test_true_predictions_find_exactly_the_boxes() -> None:
    spec, task = Detection(2, SIZE, (6, 8), 0.6), detection("a", 2, SIZE, stride=4)
    truth = torch.tensor(
        [
            [[0.0, 2.0, 2.0, 13.0, 11.0], [1.0, 15.0, 5.0, 30.0, 22.0]],
            [[-1.0, 0, 0, 0, 0], [1.0, 4.0, 4.0, 9.0, 9.0]],
        ]
    )
    classes, answers, boxes = spec.assigned(truth)
    middles = spec.middles(truth)
    sides = torch.cat([middles - boxes[..., :2], boxes[..., 2:] - middles], -1) / 4
    inverse = (
        torch.where(answers[..., None], sides.clamp(min=1e-3), 1.0).expm1().log()
    )  # of softplus
    centreness = torch.where(answers, spec.centreness(boxes), 0.0)
    flat = torch.cat([20 * classes - 10, inverse, centreness.logit(eps=1e-6)[..., None]], -1)
    prediction = flat.transpose(1, 2).unflatten(2, (6, 8))
    found = task.decode(prediction)
    for picture, own in zip(truth, found, strict=True):
        kept, wanted = own[own[:, 0] >= 0, :5], picture[picture[:, 0] >= 0]
        assert len(kept) == len(wanted)
        torch.testing.assert_close(
            kept[kept[:, 0].sort().indices],
            wanted[wanted[:, 0].sort().indices],
            rtol=1e-3,
            atol=1e-2,
        )
    assert all(score == pytest.approx(1.0) for score in scored(task, prediction, truth).values())


def test_a_boxs_score_holds_its_centreness() -> None:
    spec = Detection(2, SIZE, (6, 8), overlap=1.0)  # suppresses nothing
    prediction = torch.randn(2, 7, 6, 8)
    logits, _, centreness = spec.parts(prediction)
    for index, picture in enumerate(spec.found(prediction)):
        wanted = [
            math.sqrt(float(logit.sigmoid()) * float(centre.sigmoid()))
            for row, centre in zip(logits[index], centreness[index], strict=True)
            for logit in row
        ]
        wanted = sorted((score for score in wanted if score > 0.05), reverse=True)
        assert picture[picture[:, 0] >= 0, 5].tolist() == pytest.approx(wanted)


def scored(task: Task, prediction: Tensor, truth: Tensor) -> dict[str, float]:
    return {
        name: float(
            metric.compute(
                checked(metric.update(prediction, truth), Tensor).sum(0), torch.tensor(len(truth))
            )
        )
        for name, metric in task.metrics.items()
    }


def coco(found: Tensor, truth: Tensor) -> dict[str, float]:
    """torchmetrics, that is pycocotools, of what was found."""
    metric = MeanAveragePrecision(backend="pycocotools")
    for own, true in zip(found, truth, strict=True):
        own, true = own[own[:, 0] >= 0], true[true[:, 0] >= 0]
        metric.update(
            [{"boxes": own[:, 1:5], "scores": own[:, 5], "labels": own[:, 0].long()}],
            [{"boxes": true[:, 1:], "labels": true[:, 0].long()}],
        )
    result = metric.compute()
    return {"map": float(result["map"]), "map_50": float(result["map_50"])}


def near_the_truth(spec: Detection, truth: Tensor, noise: float) -> Tensor:
    """A prediction that is right now and then, with scores that say little."""
    classes, answers, boxes = spec.assigned(truth)
    middles = spec.middles(truth)
    sides = torch.cat([middles - boxes[..., :2], boxes[..., 2:] - middles], -1) / torch.tensor(
        spec.stride
    ).repeat(2)
    inverse = torch.where(
        answers[..., None], sides.clamp(min=1e-2), 1.0
    ).expm1().log() + noise * torch.randn(sides.shape)
    logits = 2.5 * classes - 3 + torch.randn(classes.shape)
    flat = torch.cat([logits, inverse, torch.randn(*answers.shape, 1)], -1)
    prediction: Tensor = flat.transpose(1, 2).unflatten(2, spec.places)
    return prediction


@pytest.mark.parametrize("noise", [0.1, 0.3, 0.8])
def test_average_precision_is_cocos_up_to_bins(noise: float) -> None:
    """It is never above."""
    spec, task = Detection(3, SIZE, (6, 8), 0.6), detection("a", 3, SIZE, stride=4)
    truth = random_truth(40, 4, 3)
    prediction = near_the_truth(spec, truth, noise)
    exact, found = coco(task.decode(prediction), truth), scored(task, prediction, truth)
    assert 0.05 < exact["map_50"] < 0.98
    for name in exact:
        assert exact[name] - 0.01 <= found[name] <= exact[name] + 1e-6, (
            name,
            exact[name],
            found[name],
        )


def test_binned_scores_give_cocos_average_precision() -> None:
    """What shares a bin is then found in one go by both: one box a bin and a picture."""
    truth = random_truth(12, 4, 1)
    corners = truth[:, :, 1:] + torch.randn(12, 4, 4) * 0.7
    corners = torch.cat(
        [corners[..., :2], torch.maximum(corners[..., 2:], corners[..., :2] + 0.1)], -1
    )
    found = torch.cat([truth[:, :, :1].clamp(min=0), corners], -1)
    scores = ((torch.randperm(180)[:48] + 10.5) / 200).reshape(12, 4).sort(descending=True).values
    true = matched(found, truth, torch.tensor(IOU_THRESHOLDS))
    bins = (scores * 200).long()
    hits, every = torch.zeros(10, 200), torch.zeros(200)
    for n in range(12):
        for d in range(4):
            hits[:, bins[n, d]] += true[n, :, d]
            every[bins[n, d]] += 1
    number = (truth[..., 0] >= 0).sum().double()
    precision = average_precision(hits, every.expand(10, -1), number.expand(10))
    exact = coco(torch.cat([found, scores[..., None]], -1), truth)
    assert float(precision.mean()) == pytest.approx(exact["map"], abs=1e-6)
    assert float(precision[0]) == pytest.approx(exact["map_50"], abs=1e-6)
    assert 0.1 < exact["map"] < 0.95


def test_boxes_found_on_empty_pictures_are_wrong() -> None:
    spec, task = Detection(1, SIZE, (6, 8), 0.6), detection("a", 1, SIZE, stride=4)
    truth = random_truth(6, 2, 1)
    truth[:, :, 0] = 0
    prediction = near_the_truth(spec, truth, 0.1)
    empty = torch.full_like(truth, -1.0)
    alone = scored(task, prediction, truth)
    wrong = torch.cat([prediction, near_the_truth(spec, truth, 0.1)])
    both, exact = (
        scored(task, wrong, torch.cat([truth, empty])),
        coco(task.decode(wrong), torch.cat([truth, empty])),
    )
    assert both["map_50"] < alone["map_50"] - 0.05
    assert both["map_50"] == pytest.approx(exact["map_50"], abs=0.01)
    assert np.isnan(scored(task, prediction, empty)["map"])


def test_difficult_objects_are_ignored() -> None:
    spec, task = Detection(2, SIZE, (6, 8), 0.6), detection("a", 2, SIZE, stride=4)
    truth = random_truth(8, 3, 2)
    prediction = near_the_truth(spec, truth, 0.1)
    difficult, gone = truth.clone(), truth.clone()
    difficult[:, 0, 0] = torch.where(truth[:, 0, 0] >= 0, -2 - truth[:, 0, 0], -1.0)
    gone[:, 0, 0] = -1
    scores = {
        name: scored(task, prediction, own)["map_50"]
        for name, own in (("d", difficult), ("g", gone))
    }
    assert (
        scores["d"] > scores["g"] + 0.05
    )  # what is found of it is wrong where it is not there at all

    # Found by none, it is missed by none.
    kept = near_the_truth(spec, gone, 0.1)
    assert scored(task, kept, difficult)["map_50"] >= scored(task, kept, gone)["map_50"]

    # Its places are not told that nothing of its class is there; those of other classes, and all others, are.
    prediction = prediction.requires_grad_()
    one = torch.autograd.grad(task.loss(prediction, difficult).sum(), prediction)[0][:, :2].flatten(
        2
    )
    other = torch.autograd.grad(task.loss(prediction, gone).sum(), prediction)[0][:, :2].flatten(2)
    middles = spec.middles(truth)
    inside = ((middles > truth[:, :1, 1:3]) & (middles < truth[:, :1, 3:])).all(-1)
    hidden = torch.stack([inside & (truth[:, :1, 0] == label) for label in range(2)], 1)
    free = hidden & (spec.assigned(gone)[0].transpose(1, 2) == 0)
    assert free.any() and (one[free] == 0).all() and (other[free] != 0).all()
    torch.testing.assert_close(one[~free], other[~free])


def test_whole_picture_heads_ignore_positions() -> None:
    task = over_places(regression("a", (0.0, 1.0), (1.0, 2.0)))
    head = task.head((3, 6, 8))
    inside = torch.zeros(2, 3, 6, 8)
    inside[0, :, 1:3, 1:3] = torch.randn(3, 2, 2)
    inside[1, :, 3:5, 5:7] = inside[0, :, 1:3, 1:3]
    one, other = head(inside.flatten(1))
    torch.testing.assert_close(one, other)
    assert one.shape == (2,)
    assert task.head((5,))(torch.randn(4, 5)).shape == (
        4,
        2,
    )  # of features that are no maps it is the plain one
