"""Plots of what a learner knows tasks by: embeddings in two dimensions, and what it holds tasks to
be to each other.
"""

import math
import re
from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go

from raymtl.reporting.html.collect import Row
from raymtl.reporting.html.theme import ACCENT, INK, PALETTE, colour, literal, panels

MOST_COLOURS = 12
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "cross", "x", "star", "triangle-down")


class Groups(NamedTuple):
    """What the marks are told apart by, and the sentence that says so."""

    keys: tuple[str, ...]
    sentence: str

    def of(self, row: Row) -> tuple[str, ...]:
        """The group of a row of embeddings.parquet or relations.parquet."""
        return tuple(str(row[key]) for key in self.keys)

    def place(self, row: Row) -> tuple[list[tuple[float, str]], ...]:
        """Where the group of the row comes among the others: as a reader orders names, with numbers
        by their size.
        """
        return tuple(
            [
                (float(part), "") if part.isdecimal() else (math.inf, part)
                for part in re.split(r"(\d+)", name)
            ]
            for name in self.of(row)
        )


def groups(rows: Sequence[Row]) -> Groups:
    """Domains are told apart where there are few of them; tasks where there are several."""
    domains, tasks = ({row[key] for row in rows} for key in ("domain", "task"))
    by_task = len(tasks) > 1
    if len(domains) > MOST_COLOURS:
        reason = f"The {len(domains)} domains are too many to have a colour each"
        return Groups(("task",), f"{reason}{'; the colour is the task' if by_task else ''}.")
    if by_task:
        return Groups(
            ("domain", "task"),
            "The colour is the domain of the episode, the shape of the mark the task.",
        )
    return Groups(("domain",), "The colour is the domain of the episode.")


def principal_plane(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points [N, D] on their first two principal components, [N, 2], and the share of the variance
    along each, [2].

    A component points to where its largest entry is positive, so that the same points give the same
    picture.
    """
    centred = points - points.mean(0)
    _, singular, components = np.linalg.svd(centred, full_matrices=False)
    components = (
        components
        * np.sign(components[np.arange(len(components)), np.abs(components).argmax(1)])[:, None]
    )
    plane, shares = np.zeros((len(points), 2)), np.zeros(2)
    width = min(2, len(components))
    plane[:, :width] = centred @ components[:width].T
    total = np.square(singular).sum()
    if total > 0:
        shares[:width] = np.square(singular[:width]) / total
    return plane, shares


def embedding_plot(rows: Sequence[Row]) -> go.Figure | None:
    """The embeddings of the tasks on their first two principal components."""
    if len(rows) < 3:
        return None
    plane, shares = principal_plane(np.array([row["embedding"] for row in rows]))
    by = groups(rows)
    found = list(dict.fromkeys(by.of(row) for row in sorted(rows, key=by.place)))
    firsts, lasts = (list(dict.fromkeys(group[end] for group in found)) for end in (0, -1))
    names = [literal(", ".join(group)) for group in found]
    figure = panels(
        [""], columns=1, legend=_legend_lines(names) if len(found) > 1 else 0, height=440
    )
    for group, name in zip(found, names, strict=True):
        own = [index for index, row in enumerate(rows) if by.of(row) == group]
        number = firsts.index(group[0])
        if len(group) > 1:
            shape = lasts.index(group[-1])
        else:
            shape = number // len(PALETTE)
        figure.add_scatter(
            x=_rounded(plane[own, 0]), y=_rounded(plane[own, 1]), mode="markers", name=name,
            marker={
                "size": 8, "opacity": 0.75, "color": colour(number), "symbol": SYMBOLS[shape % len(SYMBOLS)],
                "line": {"color": "white", "width": 0.5},
            },
            customdata=[[literal(rows[i]["domain"]), literal(rows[i]["task"]), rows[i]["episode"]] for i in own],
            hovertemplate="%{customdata[0]}<br>task %{customdata[1]}, episode %{customdata[2]}<extra></extra>",
        )  # fmt: skip
    for axis, number in (("xaxis", 0), ("yaxis", 1)):
        title = (
            f"{('first', 'second')[number]} component, {100 * shares[number]:.0f} % of the variance"
        )
        figure.update_layout({axis: {"title": {"text": title}}})
    # One unit is as long on both axes: distances are what the picture is about.
    figure.update_xaxes(constrain="domain", constraintoward="left")
    figure.update_yaxes(scaleanchor="x", scaleratio=1)
    return figure


def relation_plot(rows: Sequence[Row]) -> go.Figure | None:
    """The matrix of relations.parquet as a heat map, its rows and columns ordered by what they are
    told apart by.
    """
    if len(rows) < 2:
        return None
    by = groups(rows)
    order = sorted(
        range(len(rows)), key=lambda index: (by.place(rows[index]), rows[index]["episode"])
    )
    matrix = np.array([rows[index]["relations"] for index in order])[:, order]
    about = [
        f"{rows[i]['domain']}, task {rows[i]['task']}, episode {rows[i]['episode']}" for i in order
    ]
    low, high = float(matrix.min()), float(matrix.max())
    signed = low < 0 < high
    if signed:
        bounds = (-max(-low, high), max(-low, high))
    else:
        bounds = (low, high)
    figure = panels([""], columns=1, height=520)
    figure.add_heatmap(
        z=[_rounded(line) for line in matrix],
        customdata=[[[literal(one), literal(other)] for other in about] for one in about],
        hovertemplate="%{customdata[0]}<br>%{customdata[1]}<br>%{z:.3g}<extra></extra>",
        zmin=bounds[0], zmax=bounds[1],
        colorscale=[[0, "#D55E00"], [0.5, "white"], [1, ACCENT]] if signed else [[0, "white"], [1, ACCENT]],
        colorbar={"thickness": 14, "outlinewidth": 0, "ticklen": 4, "x": 0.62, "xpad": 12},
    )  # fmt: skip
    runs = [
        (", ".join(group), len(list(own)))
        for group, own in groupby(by.of(rows[index]) for index in order)
    ]
    ends = np.cumsum([length for _, length in runs])
    middles = ends - np.array([length for _, length in runs]) / 2 - 0.5
    ticks = {"tickvals": middles.tolist(), "ticktext": [literal(name) for name, _ in runs]}
    ticks |= {"showgrid": False, "ticks": "", "showline": False, "constrain": "domain"}
    for end in ends[:-1].tolist():
        line = {"color": INK, "width": 0.8}
        figure.add_vline(x=end - 0.5, line=line)
        figure.add_hline(y=end - 0.5, line=line)
    figure.update_xaxes(**ticks, domain=[0, 0.62], constraintoward="right")
    figure.update_yaxes(**ticks, autorange="reversed", scaleanchor="x", scaleratio=1)
    return figure


def _legend_lines(names: Sequence[str]) -> int:
    """How many lines the names take in a legend on paper, which is 680 pixels wide."""
    entry = 45 + 7 * max(len(name) for name in names)
    return -(-len(names) // max(1, 680 // entry))


def _rounded(values: np.ndarray) -> list[float]:
    # Plain lists keep the page free of plotly's binary arrays, which older viewers do not read.
    return [float(f"{value:.4g}") for value in values]
