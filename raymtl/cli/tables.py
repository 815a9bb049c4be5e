"""Scores as several commands print them."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.measure import Measurement
from rich.table import Table

from raymtl.reporting.console import plain_console

NATURAL = 10_000
"""A width in which every table has room: a score that is cut off says nothing."""


def print_scores(models: list[dict[str, Any]]) -> None:
    """Prints one column for each model, and for a first one that adapts two: before and after."""
    best = models[0]
    adapts = best.get("adapts", True)
    table = Table(box=None, pad_edge=False)
    title = ""
    if len(models) > 1:
        title = "held-out test"
    table.add_column(title, no_wrap=True)
    headings = [model["name"] for model in models]
    if adapts:
        headings = [f"{best['name']}\nbefore", f"{best['name']}\nadapted"]
        headings += [f"{model['name']}\n" for model in models[1:]]
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for task, metric in _shown(best["tasks"]):
        scores = [model["tasks"][task][metric] for model in models]
        before = _before_cells(scores[0], adapts)
        table.add_row(f"{task} {metric}", *before, *(figure(score["after"]) for score in scores))
    totals = [model["score"] or {} for model in models]
    before = _before_cells(totals[0], adapts)
    table.add_row("score", *before, *(figure(total.get("after")) for total in totals))
    for key, better in (("delta_m", "lower"), ("delta_p", "higher")):
        if best.get(key) is not None:
            empty = [""] * adapts
            table.add_row(f"{key} % ({better})", *empty, *(_delta(model, key) for model in models))
    console = plain_console()
    needed = Measurement.get(console, console.options.update(max_width=NATURAL), table).maximum
    plain_console(width=max(needed, console.width)).print(table)


def _shown(tasks: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Task and metric of every score that tables show."""
    for task, metrics in tasks.items():
        for metric, score in metrics.items():
            if score.get("shown", True):
                yield task, metric


def _delta(model: Mapping[str, Any], key: str) -> str:
    value, ci95 = model[key], model.get(f"{key}_ci95")
    if value is None:
        return "-"
    text = f"{round(value, 1) or 0.0:+.1f}"
    if value and ci95 is not None:
        text += f"±{ci95:.1f}"
    return text


def _before_cells(score: Mapping[str, Any], adapts: bool) -> list[str]:
    """The column of scores before adaptation, where there is one."""
    if adapts:
        return [_before(score)]
    return []


def _before(score: Mapping[str, Any]) -> str:
    """The score before adaptation; a dash for a model that does not adapt."""
    gain = score.get("gain")
    moved = gain is None or gain["mean"] != 0 or gain["ci95"] != 0
    if moved:
        return _mean(score.get("before"))
    return "-"


def _mean(value: Mapping[str, float | None] | None) -> str:
    if not value or value["mean"] is None:
        return "-"
    return f"{value['mean']:.3f}"


def figure(value: Mapping[str, float | None] | None) -> str:
    """A score with its 95 % interval; a dash for none."""
    if not value or value.get("ci95") is None:
        return _mean(value)
    return f"{_mean(value)}±{value['ci95']:.3f}"
