"""What compares models across tasks: the relative change against baselines, in both conventions."""

from collections.abc import Mapping

Scores = Mapping[str, Mapping[str, tuple[float, bool]]]
"""Task -> metric -> (value, whether higher is better)."""


def delta_m(scores: Scores, baseline: Scores) -> float | None:
    """Mean over all metrics of the relative change, signed so that lower is better, percent.

    (-1)^{higher is better} (M - B) / |B| * 100, the convention of Nash-MTL (arXiv:2202.01017) and FAMO
    (arXiv:2306.03792), who divide by B: the magnitude keeps the sign right for metrics that can be negative.
    Scores hold metrics on a ratio scale only: relative to an R^2 near 0 everything is huge. None where a baseline is
    exactly 0.
    """
    changes = [change for task in _changes(scores, baseline).values() for change in task]
    return -sum(changes) / len(changes) if changes else None


def delta_p(scores: Scores, baseline: Scores) -> float | None:
    """The same change averaged within each task first, signed so that higher is better, percent (arXiv:2004.13379)."""
    by_task = [sum(task) / len(task) for task in _changes(scores, baseline).values()]
    return sum(by_task) / len(by_task) if by_task else None


def _changes(scores: Scores, baseline: Scores) -> dict[str, list[float]]:
    """Task -> improvement of each metric in percent of the baseline's magnitude; nothing if a baseline is 0."""
    if any(value == 0 for metrics in baseline.values() for value, _ in metrics.values()):
        return {}
    return {
        task: [
            (1 if higher else -1) * (value - baseline[task][name][0]) / abs(baseline[task][name][0]) * 100
            for name, (value, higher) in metrics.items()
        ]
        for task, metrics in scores.items()
    }
