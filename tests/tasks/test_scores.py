"""Scores against torchmetrics, scikit-learn and plain loops over all that was pooled."""

import math
from typing import Literal

import numpy as np
import pytest
import sklearn.metrics
import torch
import torchmetrics.functional as tm
from sklearn.metrics import average_precision_score
from torch import Tensor

from raymtl.tasks import (
    binary,
    classification,
    depth,
    metric_sums,
    metric_values,
    multilabel,
    normals,
    regression,
    segmentation,
)
from raymtl.tasks.normals import NUM_BINS as ANGLE_BINS
from raymtl.tasks.scores import NUM_BINS, bins_of, logit_bin, median
from raymtl.types import Batch, Task
from tests.narrowing import checked, present

Loss = Literal["squared", "absolute", "huber"]
pytestmark = pytest.mark.usefixtures("float64")


def scores(task: Task, prediction: Tensor, target: Tensor) -> dict[str, float]:
    """From the sums of batches of ragged sizes."""
    sizes = [1, 3, len(target) - 4]
    sums = [
        metric_sums([task], {task.name: p}, Batch(torch.zeros(len(t)), {task.name: t}, {}))
        for p, t in zip(prediction.split(sizes), target.split(sizes), strict=True)
    ]
    values = metric_values([task], torch.stack(sums).sum(0), torch.tensor([float(len(target))]))
    return {name: float(values[f"{task.name}.{name}"]) for name in task.metrics}


def test_scores_of_classes() -> None:
    logits, target = torch.randn(60, 4), torch.randint(3, (60,))  # the fourth class does not occur
    found, guess = scores(classification("a", 4), logits, target), logits.argmax(-1)
    assert found["accuracy"] == pytest.approx(
        sklearn.metrics.accuracy_score(target, guess), abs=1e-7
    )
    recalls = [float((guess == c)[target == c].double().mean()) for c in range(3)]
    assert found["balanced_accuracy"] == pytest.approx(np.mean(recalls), abs=1e-7)
    assert found["f1"] == pytest.approx(
        sklearn.metrics.f1_score(target, guess, average="macro"), abs=1e-7
    )
    entropy = sklearn.metrics.log_loss(target, logits.softmax(-1), labels=range(4))
    assert found["log_loss"] == pytest.approx(entropy, abs=1e-9)


def test_few_shot_classes_have_no_class_scores() -> None:
    assert list(classification("a", 4, few_shot=True).metrics) == ["accuracy", "log_loss"]


@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_scores_of_yes_and_no(scale: float) -> None:
    target = (torch.rand(500) < 0.15).long()
    logits = scale * (torch.randn(500, 1) + target[:, None] - 1)
    probability, guess = logits[:, 0].sigmoid(), logits[:, 0] > 0
    found = scores(binary("a"), logits, target)
    assert next(iter(found)) == "auroc"
    expected = {
        "accuracy": sklearn.metrics.accuracy_score(target, guess),
        "balanced_accuracy": sklearn.metrics.balanced_accuracy_score(target, guess),
        "f1": sklearn.metrics.f1_score(target, guess),
        "log_loss": float(
            torch.nn.functional.binary_cross_entropy_with_logits(logits[:, 0], target.double())
        ),
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-6), name
    if scale == 1:
        assert found["log_loss"] == pytest.approx(
            sklearn.metrics.log_loss(target, probability), abs=1e-9
        )
    # Ranked by the bins alone both areas are exact, ties included; and the bins are fine enough for three digits.
    bins = logit_bin(logits[:, 0])
    for name, exact in (
        ("auroc", sklearn.metrics.roc_auc_score),
        ("average_precision", average_precision_score),
    ):
        assert found[name] == pytest.approx(exact(target, bins), abs=1e-12)
        assert found[name] == pytest.approx(exact(target, logits[:, 0]), abs=5e-4), name


def test_the_area_of_rare_positives_is_sklearns() -> None:
    generator = torch.Generator().manual_seed(1)
    target = (torch.rand(20_000, generator=generator) < 0.01).long()
    logits = -5 + 0.5 * torch.randn(20_000, 1, generator=generator) + 0.5 * target[:, None]
    found = scores(binary("a"), logits, target)["auroc"]
    assert found == pytest.approx(sklearn.metrics.roc_auc_score(target, logits[:, 0]), abs=5e-4)


def test_logit_bins_keep_the_order() -> None:
    """They reach from end to end."""
    logits = torch.cat([-torch.logspace(6, -6, 500), torch.logspace(-6, 6, 500)])
    bins = logit_bin(logits)
    assert (bins.diff() >= 0).all() and bins[0] == 0 and bins[-1] == NUM_BINS - 1
    assert logit_bin(torch.tensor([-torch.inf, torch.inf, torch.nan])).ge(0).all()


def test_scores_of_several_labels_some_of_them_unknown() -> None:
    known = torch.rand(50, 5) < 0.8
    truth = (torch.rand(50, 5) < 0.4).double()
    logits = torch.randn(50, 5) + truth
    logits[:, 4], truth[:, 4] = -1.0, 0.0  # neither there nor predicted
    found = scores(multilabel("a", 5), logits, torch.where(known, truth, torch.nan))
    per_label = []
    for label in range(5):
        rows = known[:, label]
        p, t = logits[rows, label], truth[rows, label].long()
        per_label.append(
            (
                float(tm.classification.binary_accuracy(p.sigmoid(), t)),
                float(tm.classification.binary_f1_score(p.sigmoid(), t)),
                sklearn.metrics.roc_auc_score(t, logit_bin(p, bins_of(5)))
                if label < 4
                else math.nan,
                average_precision_score(t, logit_bin(p, bins_of(5))) if label < 4 else math.nan,
                sklearn.metrics.balanced_accuracy_score(t, p > 0) if label < 4 else math.nan,
            )
        )
    accuracy, f1, area, precision, balanced = zip(*per_label, strict=True)
    assert found["accuracy"] == pytest.approx(np.mean(accuracy))
    assert found["f1"] == pytest.approx(np.mean(f1[:4]))
    assert found["auroc"] == pytest.approx(np.nanmean(area), abs=1e-12)
    assert found["average_precision"] == pytest.approx(np.nanmean(precision), abs=1e-12)
    assert found["balanced_accuracy"] == pytest.approx(np.nanmean(balanced), abs=1e-7)
    marked = torch.where(known, truth, -1.0).long()
    macro = tm.classification.multilabel_accuracy(
        logits.sigmoid(), marked, num_labels=5, ignore_index=-1
    )
    assert found["accuracy"] == pytest.approx(float(macro), abs=1e-6)


def test_scores_of_numbers() -> None:
    target = 3 + 2 * torch.randn(40)
    mean, std = 2.5, 1.7  # of the targets for training, which are others
    prediction = ((target - mean) / std + 0.3 * torch.randn(40))[:, None]
    task = regression("a", mean, std)
    found, values = scores(task, prediction, target), task.decode(prediction)
    assert found["r2"] == pytest.approx(sklearn.metrics.r2_score(target, values), abs=1e-12)
    assert found["mae"] == pytest.approx(
        sklearn.metrics.mean_absolute_error(target, values), abs=1e-12
    )
    rmse = sklearn.metrics.root_mean_squared_error(target, values)
    assert found["rmse"] == pytest.approx(rmse, abs=1e-12)
    useless = sklearn.metrics.root_mean_squared_error(target, torch.full((40,), mean))
    assert found["rrmse"] == pytest.approx(rmse / useless, abs=1e-12)


@pytest.mark.parametrize("spread", [1.0, 20.0])
def test_constant_predictions_never_beat_the_mean(
    spread: float,
) -> None:
    """On a heavy tail the variance of the training rows may be many times that of the scored ones."""
    target = torch.randn(200).mul(spread).exp().clamp(max=1e6)
    task = regression("a", float(target.mean()), 50 * float(target.std()))
    found = scores(task, torch.zeros(200, 1), target)
    assert found["r2"] == pytest.approx(0, abs=1e-9) and found["rrmse"] == pytest.approx(
        1, abs=1e-9
    )


def test_targets_that_are_all_equal_have_no_r2() -> None:
    found = scores(regression("a", 5.5, 2.0), torch.randn(30, 1), torch.full((30,), 7.3))
    assert math.isnan(found["r2"]) and found["rmse"] > 0


@pytest.mark.parametrize(("offset", "scale"), [(1e9, 10.0), (1e8, 1.0), (0.0, 1e-30), (-3e12, 1.0)])
def test_scores_are_invariant_to_shift_and_scale(offset: float, scale: float) -> None:
    torch.set_default_dtype(torch.float32)
    standard, off = torch.randn(60, dtype=torch.float64), 0.3 * torch.randn(60, 1)
    target = offset + scale * standard
    task, plain = regression("a", offset, scale), regression("a", 0.0, 1.0)
    prediction = present(plain.encode_target)(standard) + off
    found, expected = scores(task, prediction, target), scores(plain, prediction, standard)
    tolerance = 1e-3 if offset == -3e12 else 1e-5
    assert found["r2"] == pytest.approx(expected["r2"], abs=tolerance)
    assert found["mae"] == pytest.approx(scale * expected["mae"], rel=tolerance)
    torch.testing.assert_close(
        task.loss(prediction, target), plain.loss(prediction, standard), rtol=1e-2, atol=tolerance
    )
    assert task.decode(prediction).dtype == torch.float64


def test_vector_scores_average_over_known_components() -> None:
    target = torch.randn(40, 3) * torch.tensor([1.0, 3.0, 0.5]) + torch.tensor([0.0, 5.0, -1.0])
    there = torch.rand(40, 3) < 0.7
    mean = [float(target[there[:, d], d].mean()) for d in range(3)]
    std = [float(target[there[:, d], d].std(correction=0)) for d in range(3)]
    task = regression("a", mean, std)
    prediction = (target - torch.tensor(mean)) / torch.tensor(std) + 0.4 * torch.randn(40, 3)
    found, values = (
        scores(task, prediction, torch.where(there, target, torch.nan)),
        task.decode(prediction),
    )
    pairs = [(target[there[:, d], d], values[there[:, d], d]) for d in range(3)]
    assert found["r2"] == pytest.approx(
        np.mean([sklearn.metrics.r2_score(*p) for p in pairs]), abs=1e-12
    )
    assert found["mae"] == pytest.approx(
        np.mean([sklearn.metrics.mean_absolute_error(*p) for p in pairs]), abs=1e-12
    )
    rmse = np.mean([sklearn.metrics.root_mean_squared_error(*p) for p in pairs])
    assert found["rmse"] == pytest.approx(rmse, abs=1e-12)
    whole = regression("a", mean, std)
    every = scores(whole, prediction, target)
    assert every["mae"] == pytest.approx(float(tm.mean_absolute_error(values, target)), abs=1e-12)


@pytest.mark.parametrize(("loss", "slope"), [("squared", None), ("absolute", 1.0), ("huber", 1.0)])
def test_losses_of_numbers(loss: Loss, slope: float | None) -> None:
    prediction, target = 3 * torch.randn(30, 1), torch.randn(30)
    own = regression("a", 0.5, 2.0, loss=loss).loss(prediction, target)
    wanted = (target - 0.5) / 2
    torch_own = {
        "squared": torch.nn.MSELoss,
        "absolute": torch.nn.L1Loss,
        "huber": torch.nn.HuberLoss,
    }[loss]
    torch.testing.assert_close(
        own, torch_own(reduction="none")(prediction[:, 0], wanted), rtol=1e-12, atol=1e-12
    )
    vector = regression("a", [0.5, 0.5], [2.0, 2.0], loss=loss)
    pair = torch.stack([target, torch.where(target > 0, target, torch.nan)], 1)
    both = vector.loss(prediction.expand(-1, 2), pair)
    torch.testing.assert_close(both, own, rtol=1e-12, atol=1e-12)


def test_scores_of_segmentation() -> None:
    size, classes = (9, 7), 6
    logits = torch.randn(8, classes, *size)
    logits[:, 5] = -99.0  # never predicted,
    target = torch.randint(-1, 5, (8, *size))  # nor there
    found = scores(segmentation("a", classes, size), logits, target)
    iou = tm.jaccard_index(
        logits.argmax(1), target, "multiclass", num_classes=classes, average="none", ignore_index=-1
    )
    assert found["miou"] == pytest.approx(float(iou[:5].double().mean()), abs=1e-6)
    accuracy = tm.accuracy(
        logits, target, "multiclass", num_classes=classes, average="micro", ignore_index=-1
    )
    assert found["pixel_accuracy"] == pytest.approx(float(accuracy), abs=1e-6)
    macro = tm.jaccard_index(
        logits.argmax(1), target, "multiclass", num_classes=classes, ignore_index=-1
    )
    assert found["miou"] == pytest.approx(float(macro), abs=1e-6)


def test_segmentation_loss_is_valid_pixels_cross_entropy() -> None:
    """Of each picture."""
    logits, target = torch.randn(4, 3, 5, 6), torch.randint(-1, 3, (4, 5, 6))
    own = segmentation("a", 3, (5, 6)).loss(logits, target)
    expected = [
        torch.nn.functional.cross_entropy(x[None], y[None], ignore_index=-1)
        for x, y in zip(logits, target, strict=True)
    ]
    torch.testing.assert_close(own, torch.stack(expected), rtol=1e-12, atol=1e-12)


def test_equal_valid_pixels_give_libmtls_loss() -> None:
    """LibMTL's protocol for NYUv2, which divides by the pixels of the batch, is then the same."""
    target = torch.rand(5, 4, 4) + 0.5
    target.flatten(1)[:, :3] = 0
    prediction = torch.randn(5, 1, 4, 4)
    there = target > 0
    by_pixels = ((prediction[:, 0] - target).abs() * there).sum() / there.sum()
    torch.testing.assert_close(
        depth("a", (4, 4)).loss(prediction, target).mean(), by_pixels, rtol=1e-12, atol=1e-12
    )


def test_scores_of_depth() -> None:
    target = torch.where(torch.rand(6, 5, 8) < 0.3, 0.0, 1 + 4 * torch.rand(6, 5, 8))
    task = depth("a", (5, 8), mean=3.0, std=1.2)
    prediction = (target[:, None] - 3) / 1.2 + 0.5 * torch.randn(6, 1, 5, 8)
    found = scores(task, prediction, target)
    there = target > 0
    p, t = task.decode(prediction)[there], target[there]
    assert found["abs_error"] == pytest.approx(float(tm.mean_absolute_error(p, t)), abs=1e-12)
    assert found["rel_error"] == pytest.approx(float(((p - t).abs() / t).mean()), abs=1e-12)
    close = [max(a / b, b / a) < 1.25 for a, b in zip(p.tolist(), t.tolist(), strict=True) if a > 0]
    assert found["delta_1"] == pytest.approx(sum(close) / len(p), abs=1e-12)
    assert 0.2 < found["delta_1"] < 0.9


def test_scores_of_normals() -> None:
    target = torch.randn(6, 3, 9, 8)
    target = torch.where(torch.rand(6, 1, 9, 8) < 0.3, 0.0, target)
    prediction = 2 * target / target.norm(dim=1, keepdim=True).clamp(min=1e-9) + 0.7 * torch.randn(
        6, 3, 9, 8
    )
    found = scores(normals("a", (9, 8)), prediction, target)
    there = target.norm(dim=1) > 0
    cosine = torch.nn.functional.cosine_similarity(prediction, target, dim=1)[there]
    angles = np.degrees(np.arccos(cosine.clamp(-1, 1).numpy()))
    assert found["mean_angle"] == pytest.approx(angles.mean(), abs=1e-6)
    for name, degrees in (("within_11", 11.25), ("within_22", 22.5), ("within_30", 30.0)):
        assert found[name] == pytest.approx((angles < degrees).mean(), abs=1e-12)
    assert 0 < found["within_11"] < found["within_22"] < found["within_30"] < 1
    low, high = (np.quantile(angles, 0.5, method=method) for method in ("lower", "higher"))
    assert low - 180 / ANGLE_BINS <= found["median_angle"] <= high + 180 / ANGLE_BINS


@pytest.mark.parametrize("number", [1, 2, 3, 50, 5001])
def test_the_median_angle_errs_below_a_bin(number: int) -> None:
    """With an even number anything between the two in the middle is a median."""
    angles = 180 * torch.rand(number) ** 2
    prediction = torch.stack(
        [angles.deg2rad().sin(), torch.zeros(number), angles.deg2rad().cos()], 1
    )[..., None, None]
    target = torch.tensor([0.0, 0.0, 1.0]).reshape(1, 3, 1, 1).expand(number, -1, -1, -1)
    metric = normals("a", (1, 1)).metrics["median_angle"]
    found = metric.compute(
        checked(metric.update(prediction, target), Tensor).sum(0), torch.tensor(number)
    )
    low, high = (np.quantile(angles, 0.5, method=method) for method in ("lower", "higher"))
    assert low - 0.1 <= float(found) <= high + 0.1


def test_a_median_lies_inside_its_bin() -> None:
    metric = median(lambda prediction, target: (prediction, target), most=1.0, num_bins=4)
    assert float(metric.compute(torch.tensor([0.0, 3.0, 0.0, 0.0]), torch.tensor(3))) == 0.375
