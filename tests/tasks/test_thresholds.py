"""Thresholds of decisions, against scikit-learn at every cut."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score

from raymtl.tasks import (
    ThresholdMetric,
    at_thresholds,
    best_threshold,
    binary,
    classification,
    metric_sums,
    metric_values,
    multilabel,
    regression,
    with_threshold,
)
from raymtl.types import Batch, Task, UserError

ORACLES: dict[ThresholdMetric, Callable[[Any, Any], float]] = {
    "f1": lambda y, p: f1_score(y, p, zero_division=0),
    "accuracy": accuracy_score,
    "balanced_accuracy": balanced_accuracy_score,
}
METRICS: tuple[ThresholdMetric, ...] = tuple(ORACLES)


def scores(task: Task, logits: torch.Tensor, target: torch.Tensor) -> dict[str, float]:
    batch = Batch(torch.zeros(len(target)), {task.name: target}, {})
    sums = metric_sums([task], {task.name: logits}, batch)
    values = metric_values([task], sums, torch.tensor([len(target)]))
    return {name.partition(".")[2]: float(value) for name, value in values.items()}


@pytest.mark.parametrize("metric", METRICS)
def test_no_other_threshold_is_better(metric: ThresholdMetric) -> None:
    """Logits are often tied, and classes absent; scikit-learn judges every way to cut them."""
    rng = np.random.default_rng(0)
    oracle = ORACLES[metric]
    for size in rng.integers(2, 30, 60):
        logits = rng.integers(-4, 5, size).astype(float)
        target = rng.random(size) < rng.choice([0.0, 0.1, 0.5])
        found = best_threshold(torch.tensor(logits), torch.tensor(target), metric)
        if not target.any() or target.all():
            assert found is None
            continue
        assert found is not None
        every = [oracle(target, logits > cut) for cut in np.arange(-5.5, 5)]
        assert oracle(target, logits > found) == pytest.approx(max(every))


def test_of_equally_good_thresholds_the_nearest_to_a_half_is_taken() -> None:
    logits = torch.tensor([-3.0, -1.0, 2.0, 5.0])
    target = torch.tensor([0, 0, 1, 1])
    assert best_threshold(logits, target, "f1") == 0.5
    # yes, no, yes: F1 is 4/5 for a yes to all, 2/3 for a yes to the highest alone.
    assert best_threshold(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1, 0, 1]), "f1") == 0.0


@pytest.mark.parametrize("metric", METRICS)
def test_neighbouring_logits_stay_apart(metric: ThresholdMetric) -> None:
    """Of two neighbouring numbers in single precision, one is a no and one a yes."""
    low = torch.tensor([[0.3]])
    high = torch.nextafter(low, torch.tensor(1.0))
    logits, target = torch.cat([low, high]), torch.tensor([0, 1])
    threshold = best_threshold(logits[:, 0], target, metric)
    task = at_thresholds(binary("y"), [threshold])
    assert task.decode(logits).tolist() == [0, 1]
    assert scores(task, logits, target)[metric] == 1


def test_scores_at_a_threshold_are_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    logits, target = rng.normal(size=300), rng.random(300) < 0.2
    task = at_thresholds(binary("y"), [0.7])
    found = scores(task, torch.tensor(logits)[:, None], torch.tensor(target))
    plain = scores(binary("y"), torch.tensor(logits)[:, None], torch.tensor(target))
    for name, oracle in ORACLES.items():
        assert found[name] == pytest.approx(oracle(target, logits > 0.7))
    for undecided in ("auroc", "average_precision", "log_loss"):
        assert found[undecided] == plain[undecided]


def test_each_label_has_a_threshold_of_its_own() -> None:
    rng = np.random.default_rng(0)
    logits, target = rng.normal(size=(300, 3)), (rng.random((300, 3)) < 0.2).astype(float)
    cuts = (-0.4, None, 0.9)
    task = at_thresholds(multilabel("y", 3), cuts)
    decided = logits > np.array([cut or 0.0 for cut in cuts])
    assert np.array_equal(task.decode(torch.tensor(logits)).numpy(), decided)
    hidden = target.copy()
    hidden[:50, 0] = np.nan
    found = scores(task, torch.tensor(logits), torch.tensor(hidden))
    known = ~np.isnan(hidden)
    for name, oracle in ORACLES.items():
        wanted = [oracle(hidden[known[:, i], i], decided[known[:, i], i]) for i in range(3)]
        assert found[name] == pytest.approx(np.mean(wanted))


def test_a_score_of_decisions_wants_a_threshold() -> None:
    assert with_threshold(binary("y"), None, "f1").threshold_metric == "f1"
    assert with_threshold(binary("y"), "accuracy", "f1").threshold_metric == "accuracy"
    for metric in (None, "auroc", "log_loss"):
        assert with_threshold(binary("y"), None, metric).threshold_metric is None
    assert with_threshold(regression("y", 0, 1), None, "mae").threshold_metric is None
    fixed = with_threshold(multilabel("y", 2), 0.25, "f1")
    assert fixed.threshold_metric is None
    logits = torch.tensor([[0.2, 0.3], [0.3, 0.2]]).logit()
    assert fixed.decode(logits).tolist() == [[0, 1], [1, 0]]


def test_a_task_without_a_yes_has_no_threshold() -> None:
    with pytest.raises(UserError, match=r"data\.tasks\.y\.threshold: .*kind classification"):
        with_threshold(classification("y", 3), 0.3, None)
