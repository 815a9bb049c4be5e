"""Scores as several commands print them."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from raymtl.terminal import plain_console


def print_scores(models: list[dict[str, Any]]) -> None:
    """One column a model, its first in two: before and after adaptation."""
    best = models[0]
    table = Table(box=None, pad_edge=False)
    table.add_column("held-out test" if len(models) > 1 else "", no_wrap=True)
    for heading in (f"{best['name']}\nbefore", f"{best['name']}\nadapted", *(f"{m['name']}\n" for m in models[1:])):
        table.add_column(heading, justify="right", no_wrap=True)
    metrics = [(task, metric) for task, scores in best["tasks"].items() for metric in scores]
    for task, metric in metrics:
        scores = [model["tasks"][task][metric] for model in models]
        table.add_row(f"{task} {metric}", _mean(scores[0]["before"]), *(figure(score["after"]) for score in scores))
    totals = [model["score"] or {} for model in models]
    table.add_row("score", _mean(totals[0].get("before")), *(figure(total.get("after")) for total in totals))
    for key, better in (("delta_m", "lower"), ("delta_p", "higher")):
        if best.get(key) is not None:
            table.add_row(f"{key} % ({better})", "", *(f"{round(model[key], 1) or 0.0:+.1f}" for model in models))
    plain_console(width=max(100, plain_console().width)).print(table)


def _mean(value: Mapping[str, float] | None) -> str:
    return f"{value['mean']:.3f}" if value else "-"


def figure(value: Mapping[str, float] | None) -> str:
    """A mean with its 95 % interval; a dash for none."""
    return f"{value['mean']:.3f}±{value['ci95']:.3f}" if value else "-"
