"""Parallel coordinates: a line a trial through its searched values and its objectives."""

import math
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from raymtl.reporting.html.collect import Row, RunData, drawable, finite, searched_names
from raymtl.reporting.html.theme import TEMPLATE, literal
from raymtl.reporting.html.values import show
from raymtl.schema.distributions import Choice, Distribution, Int, LogUniform, Uniform

# Dark is best, so that the lines that matter stand out on white.
WORST_TO_BEST = ((0.0, "#d3dce6"), (0.5, "#5b9bd5"), (1.0, "#08306b"))
NOT_USED = "not used"
MOST_AXES = 9


def parallel_plot(run: RunData) -> go.Figure | None:
    """A line a trial through its searched values and its objectives; None with fewer than two
    trials to compare.
    """
    first = next(iter(run.objectives), "")
    states = ("complete", "pruned")
    rows = [row for row in run.trials if row["state"] in states and finite(row.get(first))]
    names = _shown_names(rows)
    if len(rows) < 2 or not names:
        return None
    colours = drawable([row[first] for row in rows], run.objectives[first])
    axes = _value_axes(run, rows, names) + _objective_axes(run, rows, first, colours)
    angle, top = 0, 56
    if len(axes) > 5:  # then the names need room
        angle, top = -25, 110
    line = {
        "color": colours,
        "colorscale": WORST_TO_BEST,
        "reversescale": run.objectives[first] == "min",
        "showscale": True,
        "colorbar": {
            "title": {"text": literal(first), "side": "right", "font": {"size": 12}},
            "thickness": 12,
            "outlinewidth": 0,
        },
    }
    figure = go.Figure(
        go.Parcoords(
            dimensions=axes,
            line=line,
            labelangle=angle,
            labelfont={"size": 12},
            rangefont={"size": 1, "color": "rgba(0,0,0,0)"},
            tickfont={"size": 11},
        )
    )
    figure.update_layout(template=TEMPLATE, height=440)
    return figure.update_layout(margin={"l": 90, "r": 60, "t": top, "b": 24})


def _shown_names(rows: Sequence[Row]) -> list[str]:
    """The searched values that trials have; of many only those that most trials have, since the
    others would only cross the lines.
    """
    num_trials: dict[str, int] = {}
    for name in searched_names(rows):
        num_trials[name] = sum(row[name] is not None for row in rows)
    names = [name for name, number in num_trials.items() if number]
    if len(names) > MOST_AXES:
        names = [name for name in names if 2 * num_trials[name] >= len(rows)]
    return names


def _value_axes(run: RunData, rows: Sequence[Row], names: Sequence[str]) -> list[dict[str, Any]]:
    """An axis for each searched value."""
    axes = []
    for name in names:
        axes.append(_axis(run, name, [row[name] for row in rows]))
    return axes


def _objective_axes(
    run: RunData, rows: Sequence[Row], first: str, drawn: Sequence[float]
) -> list[dict[str, Any]]:
    """An axis for each objective that a trial reached; `drawn` are the values of the first one."""
    axes = []
    for name in run.objectives:
        values: list[float | None] = list(drawn)
        if name != first:
            values = [row.get(name) for row in rows]
            values = [value if finite(value) else None for value in values]
        if any(value is not None for value in values):
            axes.append(_axis(run, name, values))
    return axes


def _axis(run: RunData, name: str, values: Sequence[Any]) -> dict[str, Any]:
    """One axis: numbers on their scale, names at even distances, `not used` below where a `when`
    left it out.
    """
    distribution = run.experiment.search.get(name)
    numbers = [value for value in values if value is not None]
    if isinstance(distribution, Choice) or not all(map(finite, numbers)):
        axis = _names_axis(distribution, values)
    else:
        axis = _numbers_axis(distribution, values, numbers)
    return {"label": literal(name), **axis}


def _names_axis(distribution: Distribution | None, values: Sequence[Any]) -> dict[str, Any]:
    """Names in the order of the choices; a null that is no choice goes below them."""
    if isinstance(distribution, Choice):
        choices = distribution.choice
    else:
        choices = ()
    labels = ["null" if value is None and None in choices else show(value) for value in values]
    known = [show(choice) if choice is not None else "null" for choice in choices]
    if None in values and None not in choices:
        absent = [NOT_USED]
    else:
        absent = []
    names = [
        *absent,
        *dict.fromkeys(known + [label for label in sorted(labels) if label != show(None)]),
    ]
    places = {label: float(index) for index, label in enumerate(names)} | (
        {show(None): 0.0} if absent else {}
    )
    return {
        "values": [places[label] for label in labels],
        "range": [0.0 if absent else -0.2, len(names) - 0.8],
        "tickvals": list(range(len(names))),
        "ticktext": [literal(label) for label in names],
    }


def _numbers_axis(
    distribution: Distribution | None, values: Sequence[Any], numbers: Sequence[float]
) -> dict[str, Any]:
    """The whole distribution, or what there is of it; a null goes below."""
    bounds: tuple[float, ...] = ()
    if isinstance(distribution, LogUniform):
        bounds = distribution.log_uniform
    elif isinstance(distribution, Uniform):
        bounds = distribution.uniform
    elif isinstance(distribution, Int):
        bounds = distribution.int
    logarithmic = isinstance(distribution, LogUniform) and min(numbers) > 0

    def place(value: float) -> float:
        if logarithmic:
            return math.log10(value)
        return float(value)

    low, high = place(min([*numbers, *bounds])), place(max([*numbers, *bounds]))
    if low == high:
        low, high = low - 0.5, high + 0.5
    ticks = {
        place(point): show(point)
        for point in (_decades if logarithmic else _round_numbers)(low, high)
    }
    missing = low - 0.18 * (high - low)
    if len(numbers) < len(values):
        ticks[missing] = NOT_USED
        low = missing
    return {
        "values": [missing if value is None else place(value) for value in values],
        "range": [low, high],
        "tickvals": list(ticks),
        "ticktext": list(ticks.values()),
    }


def _decades(low: float, high: float) -> list[float]:
    """At most seven round numbers whose logarithms lie between the two."""
    near = 1e-9
    for digits in ((1, 2, 5), (1, 3), (1,)):
        points = [
            digit * 10.0**decade
            for decade in range(math.floor(low), math.ceil(high) + 1)
            for digit in digits
        ]
        inside = [point for point in points if low - near <= math.log10(point) <= high + near]
        if len(inside) <= 7:
            break
    if len(inside) > 1:
        return inside
    return [10.0**low, 10.0**high]


def _round_numbers(low: float, high: float) -> list[float]:
    """Three to six round numbers between the two."""
    rough = (high - low) / 5
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * digit for digit in (1, 2, 5, 10) if unit * digit >= rough * (1 - 1e-9))
    return [
        float(f"{n * step:.12g}")
        for n in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    ]
