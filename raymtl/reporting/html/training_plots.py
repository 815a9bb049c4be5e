"""Plots of a training: losses and weights, validation scores, adaptation to a new episode."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go

from raymtl.reporting.html.collect import Row, RunData, finite
from raymtl.reporting.html.theme import (
    ACCENT,
    INK,
    PALETTE,
    colour,
    dash,
    faint,
    literal,
    panels,
    place,
    whole,
)

POINTS = 1500  # of a raw curve; more would only make the page heavy
RAW = 0.22  # opacity of a raw curve
MODELS = {
    "winner": ACCENT,
    "model": ACCENT,
    "default": "#D55E00",
    "joint": "#009E73",
}


class Panel(NamedTuple):
    """Where in a figure curves are drawn, and whether they are in its legend."""

    at: dict[str, int]
    legend: bool


def loss_plot(history: Sequence[Row], *, adapts: bool = True) -> go.Figure | None:
    """Query loss of each task by outer step: faint as recorded, strong smoothed; and the weights
    where they move.
    """
    losses = _columns(history, "loss.")
    if not losses:
        return None
    weights = {
        name: values
        for name, values in _columns(history, "weight.").items()
        if np.nanstd(values) > 1e-6
    }
    title = "loss, each task"
    if adapts:
        title = "query loss after adaptation, each task"
    parts = [(title, losses)]
    if weights:
        parts.append(("loss weights, each task", weights))
    tasks = list(dict.fromkeys([*losses, *weights]))
    figure = panels(
        [title for title, _ in parts], columns=2, legend=_legend_lines(tasks), height=300
    )
    for index, (_, columns) in enumerate(parts):
        at = place(index, len(parts), columns=2)
        for task, values in columns.items():
            _add_smoothed(figure, history, task, values, tasks.index(task), Panel(at, index == 0))
        figure.update_xaxes(title_text="outer step", **at)
        if index:
            figure.update_yaxes(title_text="weight", **at)
        elif all((values[np.isfinite(values)] > 0).all() for values in columns.values()):
            figure.update_yaxes(title_text="loss (log scale)", **at)
            figure.update_yaxes(type="log", dtick="D2", tickformat="~g", **at)
        else:
            figure.update_yaxes(title_text="loss", **at)
        _mark_stages(figure, history, at)
    return figure


def _mark_stages(figure: go.Figure, history: Sequence[Row], at: dict[str, int]) -> None:
    """A line where one stage of the training ends and the next begins."""
    for one, other in pairwise(history):
        if one.get("stage") != other.get("stage"):
            label = {"text": f"stage {other['stage']}", "font": {"size": 10, "color": INK}}
            line = {"color": INK, "width": 1, "dash": "dot"}
            figure.add_vline(x=one["step"] + 0.5, line=line, annotation=label, **at)


def _legend_lines(names: Sequence[str]) -> int:
    """How many lines the names take in a legend on paper, which is 680 pixels wide."""
    entry = 45 + 7 * max(len(name) for name in names)
    return -(-len(names) // max(1, 680 // entry))


def _add_smoothed(
    figure: go.Figure,
    history: Sequence[Row],
    task: str,
    values: np.ndarray,
    number: int,
    panel: Panel,
) -> None:
    steps = [row["step"] for row in history]
    every = max(1, len(steps) // POINTS)
    shared = {"name": literal(task), "legendgroup": task, "mode": "lines"}
    ink = colour(number)
    raw = {"color": faint(ink, RAW), "width": 1}
    strong = {"color": ink, "width": 2.2, "dash": dash(number)}
    smooth = smoothed(values)
    figure.add_scatter(
        x=steps[::every],
        y=_plain(values[::every]),
        line=raw,
        showlegend=False,
        hoverinfo="skip",
        **shared,
        **panel.at,
    )
    figure.add_scatter(
        x=steps[::every],
        y=_plain(smooth[::every]),
        line=strong,
        showlegend=panel.legend,
        hovertemplate="step %{x}: %{y:.4g}",
        **shared,
        **panel.at,
    )


def smoothed(values: np.ndarray) -> np.ndarray:
    """The centred mean over a 25th of the curve, at least three points; what is not finite is left
    out of it.
    """
    window = np.ones(min(max(3, len(values) // 25 * 2 + 1), len(values)))
    known = np.isfinite(values)
    total = np.convolve(np.where(known, values, 0.0), window, "same")
    count = np.convolve(known.astype(float), window, "same")
    return np.where(count > 0.5, total / np.maximum(count, 1), np.nan)


def hidden_scores(run: RunData) -> frozenset[str]:
    """The scores that no table shows: those in metrics.json that no task is chosen by, and means
    over tasks.
    """
    found = {
        f"{task}.{name}": one.get("shown", True)
        for metrics in run.metrics.values()
        for task, named in metrics["tasks"].items()
        for name, one in named.items()
    }
    means = {name.rpartition(".")[2] for name in found}
    return frozenset(means | {name for name, shown in found.items() if not shown})


def validation_plot(
    history: Sequence[Row], hidden: frozenset[str] = frozenset()
) -> go.Figure | None:
    """`val.*` at the steps at which the validation split was scored, a panel each, but for those
    that are `hidden`.
    """
    columns = {
        name: values for name, values in _columns(history, "val.").items() if name not in hidden
    }
    if not columns:
        return None
    figure = panels([f"val.{name}" for name in columns], height=190)
    for index, values in enumerate(columns.values()):
        at = place(index, len(columns))
        seen = [
            (row["step"], value)
            for row, value in zip(history, values, strict=True)
            if np.isfinite(value)
        ]
        figure.add_scatter(
            x=[step for step, _ in seen],
            y=[value for _, value in seen],
            mode="lines+markers",
            line={"color": ACCENT, "width": 2},
            marker={"size": 6},
            hovertemplate="step %{x}: %{y:.4g}<extra></extra>",
            **at,
        )
        figure.update_xaxes(title_text="outer step", **at)
        _mark_stages(figure, history, at)
    return figure


def adaptation_plot(run: RunData) -> go.Figure | None:
    """Each metric against the inner steps with its 95 % band, for the winner and the models beside
    it.
    """
    curves = {
        name: metrics
        for name, metrics in run.metrics.items()
        if name in MODELS and metrics.get("curve")
    }
    own = next((name for name in ("winner", "model") if name in curves), None)
    if own is None or len(curves[own]["curve"]["steps"]) < 2:
        return None
    hidden = hidden_scores(run)
    names = [name for name in curves[own]["curve"] if name != "steps" and name not in hidden]
    last = max(curves[own]["curve"]["steps"])
    figure = panels(
        [f"{name} ({_direction(curves[own], name)})" for name in names], columns=2, legend=1
    )
    for index, name in enumerate(names):
        at = place(index, len(names), columns=2)
        for model, metrics in curves.items():
            if name in metrics["curve"]:
                _add_band(figure, model, metrics, name, last, Panel(at, index == 0))
        figure.add_vline(
            x=curves[own]["inner_steps"], line={"color": INK, "width": 1, "dash": "dot"}, **at
        )
        figure.update_xaxes(
            title_text="inner steps on the support set",
            range=[-0.15, last + 0.15],
            **whole(last),
            **at,
        )
        figure.update_yaxes(title_text=literal(name.rpartition(".")[2]), **at)
    return figure


def _add_band(
    figure: go.Figure,
    model: str,
    metrics: Mapping[str, Any],
    name: str,
    last: int,
    panel: Panel,
) -> None:
    steps, curve = metrics["curve"]["steps"], metrics["curve"][name]
    means, intervals = curve["mean"], [value if finite(value) else 0.0 for value in curve["ci95"]]
    mode, dashes = "lines+markers", "solid"
    if len(steps) == 1:  # a model that does not adapt is the same after any number of steps
        steps, means, intervals = [0, last], means * 2, intervals * 2
        mode, dashes = "lines", "dash"
    upper = _sums(means, intervals)
    lower = _sums(means, [-interval for interval in intervals])
    ink = MODELS.get(model, PALETTE[3])
    shared = {"legendgroup": model, "name": model, **panel.at}
    figure.add_scatter(
        x=[*steps, *steps[::-1]],
        y=[*upper, *lower[::-1]],
        fill="toself",
        fillcolor=faint(ink, 0.16),
        mode="lines",
        line={"width": 0},
        showlegend=False,
        hoverinfo="skip",
        **shared,
    )
    figure.add_scatter(
        x=steps,
        y=means,
        mode=mode,
        showlegend=panel.legend,
        line={"color": ink, "width": 2.2, "dash": dashes},
        marker={"size": 6},
        customdata=intervals,
        hovertemplate="step %{x}: %{y:.4g} ± %{customdata:.2g}",
        **shared,
    )


def _sums(values: Sequence[Any], others: Sequence[float]) -> list[float | None]:
    """The sums, with None where a value is missing."""
    sums: list[float | None] = []
    for value, other in zip(values, others, strict=True):
        if finite(value):
            sums.append(value + other)
        else:
            sums.append(None)
    return sums


def _direction(metrics: Mapping[str, Any], name: str) -> str:
    task, _, metric = name.rpartition(".")
    higher = metrics["tasks"].get(task, {}).get(metric, {}).get("higher_is_better", True)
    if higher:
        return "higher is better"
    return "lower is better"


def _columns(history: Sequence[Row], prefix: str) -> dict[str, np.ndarray]:
    """Name without the prefix -> values, nan for none; columns without any value are left out."""
    names = dict.fromkeys(key for row in history for key in row if key.startswith(prefix))
    columns = {}
    for name in names:
        values = [row.get(name) for row in history]
        column = np.array([value if finite(value) else np.nan for value in values], float)
        if np.isfinite(column).any():
            columns[name.removeprefix(prefix)] = column
    return columns


def _plain(values: np.ndarray) -> list[float | None]:
    # Plain lists keep the page free of plotly's binary arrays, which older viewers do not read.
    return [float(f"{value:.5g}") if np.isfinite(value) else None for value in values]
