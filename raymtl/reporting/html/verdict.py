"""What came out of a run, in sentences that claim no more than the intervals allow."""

from collections.abc import Mapping, Sequence

from raymtl.reporting.html.collect import RunData, finite
from raymtl.reporting.html.tables import Estimate, GainRow, ResultRow, compare, difference
from raymtl.reporting.html.values import show

SHORT = {"single-task": "single-task models"}


COMPARISONS = {
    1: "better than {}",
    0: "not distinguishable from {} (the 95 % interval of the difference holds 0)",
    -1: "worse than {}",
}
"""The sign of a difference -> its words."""
SUPERLATIVES = {"max": "highest", "min": "lowest"}


def outcome(rows: Sequence[ResultRow]) -> str:
    """One sentence: the first model's score against each other one, by the interval of their
    difference.
    """
    if rows:
        own = rows[0].cells["score"]
    else:
        own = None
    if own is None or not rows[0].scored:
        return "No model has been scored yet."
    if own.after is None:
        return f"The {rows[0].name} has no score: none is defined on the test labels."
    scores = {row.name: cell.after for row in rows[1:] if (cell := row.cells["score"]).after}
    reached = f"reaches a score of {own.after_text} on held-out test examples"
    if not scores:
        gain = ""
        if own.gain and own.before_text:
            gain = f", {own.gain.text(own.decimals, signed=True)} by adaptation"
        return (
            f"The {rows[0].name} {reached}{gain}; there is no other model in this run to compare "
            "it with."
        )
    groups: dict[int, dict[str, Estimate]] = {1: {}, 0: {}, -1: {}}
    for name, score in scores.items():
        above = difference({"against": rows[0].against}, name, "score")
        groups[compare(own.after, score, own.higher_is_better, above)][name] = score
    comparisons = []
    for sign, words in COMPARISONS.items():
        if groups[sign]:
            comparisons.append(words.format(_listed(groups[sign], own.decimals)))
    opening = f"The {rows[0].name} {reached}"
    if groups[-1]:
        opening = f"The {rows[0].name} does not win: it {reached}"
    elif groups[0]:
        opening = f"The {rows[0].name} does not win clearly: it {reached}"
    return f"{opening}, {_joined(comparisons)}."


def progress(run: RunData) -> str:
    """How far an interrupted run has come."""
    if not run.searched:
        if not run.history:
            return "Nothing of the training is recorded yet."
        return f"{len(run.history)} of {run.experiment.train.steps} outer steps are recorded."
    counts = (
        ", ".join(f"{count} {state}" for state, count in run.summary["trials"].items() if count)
        or "none yet"
    )
    return f"Trials so far: {counts} (of {run.experiment.tune.trials})." + _best_so_far(run)


def _best_so_far(run: RunData) -> str:
    metric, mode = next(iter(run.objectives.items()))
    best = next((row for row in run.trials if row["number"] == run.summary["best_trial"]), None)
    if best is None or not finite(best.get(metric)):
        return ""
    return (
        f" Trial {best['number']} has the {SUPERLATIVES[mode]} {metric} so far, "
        f"{show(best[metric])}, on validation episodes."
    )


def choice(run: RunData) -> str:
    """How the winner was chosen."""
    number, objectives = run.summary.get("best_trial"), run.objectives
    if number is None:
        return "No trial has come to its end, so there is no winner."
    if len(objectives) > 1:
        front = run.summary.get("pareto") or []
        return (
            f"Trial {number} is one of the {len(front)} on the Pareto front of "
            f"{_joined(list(objectives))}."
        )
    metric, mode = next(iter(objectives.items()))
    row: Mapping[str, object] = next((row for row in run.trials if row["number"] == number), {})
    value = ""
    if finite(row.get(metric)):
        value = f", {show(row[metric])}"
    return f"Trial {number} has the {SUPERLATIVES[mode]} {metric} of the complete trials{value}."


def adaptation(gains: Sequence[GainRow]) -> str:
    """Whether adaptation helped, counted over the metrics."""
    metrics = [gain for gain in gains if gain.metric != "score"]
    if not metrics:
        return (
            "There is no score before adaptation to compare with: this learner predicts nothing "
            "unadapted."
        )
    if all(gain.cell.gain == (0, 0) for gain in metrics):
        return "The model takes no inner steps, so before and after are the same."
    if all(gain.effect > 0 for gain in metrics):
        return (
            f"Adaptation improved all {len(metrics)} metrics, each outside the 95 % interval of "
            "its gain."
        )
    better = sum(gain.effect == 1 for gain in metrics)
    worse = sum(gain.effect == -1 for gain in metrics)
    inside = len(metrics) - better - worse
    return (
        f"Of {len(metrics)} metrics, adaptation improved {better} and worsened {worse} outside the "
        f"95 % interval of the gain; {inside} moved within it."
    )


def _listed(scores: Mapping[str, Estimate], decimals: int) -> str:
    return _joined(
        [f"{SHORT.get(name, name)} ({score.text(decimals)})" for name, score in scores.items()]
    )


def _joined(parts: list[str]) -> str:
    if len(parts) == 1:
        return parts[0]
    return f"{', '.join(parts[:-1])} and {parts[-1]}"
