"""The relative change against baselines over all tasks, in both conventions of the literature."""

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
    can be negative. The scores must contain only metrics on a ratio scale, because a change
    relative to an R^2 near 0 is huge. None if a baseline is exactly 0.
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
    """`delta_m` or `delta_p`, and its values without each group of the held-out examples.

    None if a score of either model is missing, or a baseline is exactly 0.
    """
    names = [name for metrics in named.values() for name, _ in metrics.values()]
    if not names or not all(name in scores and name in baseline for name in names):
        return None
    if any(baseline[name].value == 0 for name in names):
        return None

    def of(values: Sequence[np.ndarray]) -> np.ndarray:
        own = dict(zip(names, values, strict=False))
        other = dict(zip(names, values[len(names) :], strict=True))
        with np.errstate(divide="ignore", invalid="ignore"):
            relative: np.ndarray = delta(_valued(named, own), _valued(named, other))
        return relative

    return combine(of, [*(scores[name] for name in names), *(baseline[name] for name in names)])


def deltas_against(
    tasks: Mapping[str, Any],
    own: Mapping[str, Estimator],
    alone: Mapping[str, Any],
    baseline: Mapping[str, Estimator] | None,
) -> dict[str, float | None]:
    """`delta_m` and `delta_p` against the single-task models, with half of their 95 % intervals."""
    deltas: dict[str, float | None] = {}
    for name, delta in (("delta_m", delta_m), ("delta_p", delta_p)):
        deltas[name] = deltas[f"{name}_ci95"] = None
        if baseline is None:
            continue
        deltas[name] = delta(_after(tasks, tasks), _after(alone, tasks))
        estimator = delta_estimator(delta, _named(tasks), own, baseline)
        if estimator is not None:
            deltas[f"{name}_ci95"] = estimator.interval("any")["ci95"]
    return deltas


def _counted(tasks: Mapping[str, Any]) -> dict[str, list[str]]:
    """Task -> the metrics that the deltas are made of: those on a ratio scale that tables show."""
    counted: dict[str, list[str]] = {}
    for task, metrics in tasks.items():
        if next(iter(metrics.values()))["after"]["mean"] is None:
            continue
        counted[task] = [
            metric
            for metric, score in metrics.items()
            if score["ratio_scale"] and score.get("shown", True)
        ]
    return counted


def _after(
    tasks: Mapping[str, Any], like: Mapping[str, Any]
) -> dict[str, dict[str, tuple[float, bool]]]:
    """The adapted scores of the metrics that count in `like`."""
    scores: dict[str, dict[str, tuple[float, bool]]] = {}
    for task, metrics in _counted(like).items():
        scores[task] = {}
        for metric in metrics:
            score = tasks[task][metric]
            scores[task][metric] = (score["after"]["mean"], score["higher_is_better"])
    return scores


def _named(tasks: Mapping[str, Any]) -> dict[str, dict[str, tuple[str, bool]]]:
    """The names of the scores that count."""
    names: dict[str, dict[str, tuple[str, bool]]] = {}
    for task, metrics in _counted(tasks).items():
        names[task] = {}
        for metric in metrics:
            names[task][metric] = (f"{task}.{metric}", tasks[task][metric]["higher_is_better"])
    return names


def _valued(named: Named, values: Mapping[str, np.ndarray]) -> Scores:
    scores: dict[str, dict[str, tuple[Any, bool]]] = {}
    for task, metrics in named.items():
        scores[task] = {
            metric: (values[name], higher) for metric, (name, higher) in metrics.items()
        }
    return scores


def _changes(scores: Scores, baseline: Scores) -> dict[str, list[Any]]:
    """Task -> improvement of each metric in percent of the baseline's magnitude; nothing if a
    baseline is 0.
    """
    if any(np.all(value == 0) for metrics in baseline.values() for value, _ in metrics.values()):
        return {}
    changes: dict[str, list[Any]] = {}
    for task, metrics in scores.items():
        for metric, (value, higher) in metrics.items():
            base = baseline[task][metric][0]
            sign = 1 if higher else -1
            change = sign * (value - base) / abs(base) * 100
            changes.setdefault(task, []).append(change)
    return changes
