"""What compares models across tasks: the relative change against baselines, in both conventions."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from raymtl.evaluation.intervals import Estimator, combine

Scores = Mapping[str, Mapping[str, tuple[Any, bool]]]
"""Task -> metric -> (value, or an array of values, and whether higher is better)."""
Named = Mapping[str, Mapping[str, tuple[str, bool]]]
"""Task -> metric -> (the name of its score, and whether higher is better)."""


def delta_m(scores: Scores, baseline: Scores) -> Any:
    """Mean over all metrics of the relative change, signed so that lower is better, percent.

    (-1)^{higher is better} (M - B) / |B| * 100, the convention of Nash-MTL (arXiv:2202.01017) and
    FAMO (arXiv:2306.03792), who divide by B: the magnitude keeps the sign right for metrics that
    can be negative. Scores hold metrics on a ratio scale only: relative to an R^2 near 0 everything
    is huge. None where a baseline is exactly 0.
    """
    changes = [change for task in _changes(scores, baseline).values() for change in task]
    if changes:
        return -sum(changes) / len(changes)
    return None


def delta_p(scores: Scores, baseline: Scores) -> Any:
    """The same change averaged within each task first, signed so that higher is better, percent
    (arXiv:2004.13379).
    """
    by_task = [sum(task) / len(task) for task in _changes(scores, baseline).values()]
    if by_task:
        return sum(by_task) / len(by_task)
    return None


def delta_estimator(
    delta: Any, named: Named, scores: Mapping[str, Estimator], baseline: Mapping[str, Estimator]
) -> Estimator | None:
    """`delta_m` or `delta_p` with what it is without each group of the held-out examples.

    None where a score of either model is missing, or a baseline is exactly 0.
    """
    names = [name for metrics in named.values() for name, _ in metrics.values()]
    if not names or not all(name in scores and name in baseline for name in names):
        return None
    if any(baseline[name].value == 0 for name in names):
        return None

    def of(values: Sequence[np.ndarray]) -> np.ndarray:
        own, other = (
            dict(zip(names, values, strict=False)),
            dict(zip(names, values[len(names) :], strict=True)),
        )
        with np.errstate(divide="ignore", invalid="ignore"):
            found: np.ndarray = delta(_valued(named, own), _valued(named, other))
        return found

    return combine(of, [*(scores[name] for name in names), *(baseline[name] for name in names)])


def _valued(named: Named, values: Mapping[str, np.ndarray]) -> Scores:
    return {
        task: {metric: (values[name], higher) for metric, (name, higher) in metrics.items()}
        for task, metrics in named.items()
    }


def _changes(scores: Scores, baseline: Scores) -> dict[str, list[Any]]:
    """Task -> improvement of each metric in percent of the baseline's magnitude; nothing if a
    baseline is 0.
    """
    if any(np.all(value == 0) for metrics in baseline.values() for value, _ in metrics.values()):
        return {}
    return {
        task: [
            (1 if higher else -1)
            * (value - baseline[task][name][0])
            / abs(baseline[task][name][0])
            * 100
            for name, (value, higher) in metrics.items()
        ]
        for task, metrics in scores.items()
        if metrics
    }
