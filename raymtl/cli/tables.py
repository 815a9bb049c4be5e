"""Scores as several commands print them."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from raymtl.reporting.console import plain_console


def print_scores(models: list[dict[str, Any]]) -> None:
    """One column a model, its first in two: before and after adaptation."""
    best = models[0]
    table = Table(box=None, pad_edge=False)
    table.add_column("held-out test" if len(models) > 1 else "", no_wrap=True)
    for heading in (
        f"{best['name']}\nbefore",
        f"{best['name']}\nadapted",
        *(f"{m['name']}\n" for m in models[1:]),
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    metrics = [
        (task, name)
        for task, named in best["tasks"].items()
        for name, one in named.items()
        if one.get("shown", True)
    ]
    for task, metric in metrics:
        scores = [model["tasks"][task][metric] for model in models]
        table.add_row(
            f"{task} {metric}", _before(scores[0]), *(figure(score["after"]) for score in scores)
        )
    totals = [model["score"] or {} for model in models]
    table.add_row("score", _before(totals[0]), *(figure(total.get("after")) for total in totals))
    for key, better in (("delta_m", "lower"), ("delta_p", "higher")):
        if best.get(key) is not None:
            table.add_row(f"{key} % ({better})", "", *(_delta(model, key) for model in models))
    plain_console(width=max(100, plain_console().width)).print(table)


def _delta(model: Mapping[str, Any], key: str) -> str:
    value, ci95 = model[key], model.get(f"{key}_ci95")
    if value is None:
        return "-"
    return f"{round(value, 1) or 0.0:+.1f}" + (f"±{ci95:.1f}" if value and ci95 is not None else "")


def _before(score: Mapping[str, Any]) -> str:
    """The score before adaptation; a dash for a model that does not adapt."""
    gain = score.get("gain")
    moved = gain is None or gain["mean"] != 0 or gain["ci95"] != 0
    if moved:
        return _mean(score.get("before"))
    return "-"


def _mean(value: Mapping[str, float | None] | None) -> str:
    if value:
        mean = value["mean"]
    else:
        mean = None
    if mean is None:
        return "-"
    return f"{mean:.3f}"


def figure(value: Mapping[str, float | None] | None) -> str:
    """A score with its 95 % interval; a dash for none."""
    if value:
        ci95 = value.get("ci95")
    else:
        ci95 = None
    if ci95 is None:
        return _mean(value)
    return f"{_mean(value)}±{ci95:.3f}"
