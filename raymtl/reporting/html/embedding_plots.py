"""Plots of what a learner knows tasks by: embeddings in two dimensions, and what it holds tasks to
be to each other.
"""

import math
import re
from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

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
        return tuple(_natural_order(name) for name in self.of(row))


def _natural_order(name: str) -> list[tuple[float, str]]:
    """What to sort a name by so that the numbers in it go by their size."""
    order = []
    for piece in re.split(r"(\d+)", name):
        if piece.isdecimal():
            order.append((float(piece), ""))
        else:
            order.append((math.inf, piece))
    return order


def groups(rows: Sequence[Row]) -> Groups:
    """Domains are told apart where there are few of them; tasks where there are several."""
    domains = {row["domain"] for row in rows}
    tasks = {row["task"] for row in rows}
    by_task = len(tasks) > 1
    if len(domains) > MOST_COLOURS:
        sentence = f"The {len(domains)} domains are too many to have a colour each"
        if by_task:
            sentence += "; the colour is the task"
        return Groups(("task",), f"{sentence}.")
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
    firsts = list(dict.fromkeys(group[0] for group in found))
    lasts = list(dict.fromkeys(group[-1] for group in found))
    names = [literal(", ".join(group)) for group in found]
    figure = panels([""], columns=1, legend=_legend_lines(names), height=440)
    for group, name in zip(found, names, strict=True):
        own = [index for index, row in enumerate(rows) if by.of(row) == group]
        number = firsts.index(group[0])
        if len(group) > 1:
            shape = lasts.index(group[-1])
        else:
            shape = number // len(PALETTE)
        figure.add_scatter(
            x=_rounded(plane[own, 0]),
            y=_rounded(plane[own, 1]),
            mode="markers",
            name=name,
            marker={
                "size": 8,
                "opacity": 0.75,
                "color": colour(number),
                "symbol": SYMBOLS[shape % len(SYMBOLS)],
                "line": {"color": "white", "width": 0.5},
            },
            customdata=[_hover(rows[index]) for index in own],
            hovertemplate="%{customdata[0]}<br>task %{customdata[1]}, "
            "episode %{customdata[2]}<extra></extra>",
        )
    figure.update_xaxes(title_text=f"first component, {100 * shares[0]:.0f} % of the variance")
    figure.update_yaxes(title_text=f"second component, {100 * shares[1]:.0f} % of the variance")
    # One unit is as long on both axes: distances are what the picture is about.
    figure.update_xaxes(constrain="domain", constraintoward="left")
    figure.update_yaxes(scaleanchor="x", scaleratio=1)
    return figure


def _hover(row: Row) -> list[Any]:
    return [literal(row["domain"]), literal(row["task"]), row["episode"]]


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
    low, high = float(matrix.min()), float(matrix.max())
    colours: list[list[Any]] = [[0, "white"], [1, ACCENT]]
    if low < 0 < high:
        low, high = -max(-low, high), max(-low, high)
        colours = [[0, "#D55E00"], [0.5, "white"], [1, ACCENT]]
    figure = panels([""], columns=1, height=520)
    figure.add_heatmap(
        z=[_rounded(line) for line in matrix],
        customdata=_pairs([_described(rows[index]) for index in order]),
        hovertemplate="%{customdata[0]}<br>%{customdata[1]}<br>%{z:.3g}<extra></extra>",
        zmin=low,
        zmax=high,
        colorscale=colours,
        colorbar={"thickness": 14, "outlinewidth": 0, "ticklen": 4, "x": 0.62, "xpad": 12},
    )
    _mark_groups(figure, [by.of(rows[index]) for index in order])
    return figure


def _described(row: Row) -> str:
    return literal(f"{row['domain']}, task {row['task']}, episode {row['episode']}")


def _pairs(names: Sequence[str]) -> list[list[list[str]]]:
    """Every name beside every other, a row of them for each."""
    pairs = []
    for one in names:
        pairs.append([[one, other] for other in names])
    return pairs


def _mark_groups(figure: go.Figure, groups_in_order: Sequence[tuple[str, ...]]) -> None:
    """Names each run of rows of one group on both axes, and draws lines between the runs."""
    names, lengths = [], []
    for group, members in groupby(groups_in_order):
        names.append(literal(", ".join(group)))
        lengths.append(len(list(members)))
    ends = np.cumsum(lengths)
    middles = ends - np.array(lengths) / 2 - 0.5
    ticks: dict[str, Any] = {"tickvals": middles.tolist(), "ticktext": names}
    ticks |= {"showgrid": False, "ticks": "", "showline": False, "constrain": "domain"}
    for end in ends[:-1].tolist():
        line = {"color": INK, "width": 0.8}
        figure.add_vline(x=end - 0.5, line=line)
        figure.add_hline(y=end - 0.5, line=line)
    figure.update_xaxes(**ticks, domain=[0, 0.62], constraintoward="right")
    figure.update_yaxes(**ticks, autorange="reversed", scaleanchor="x", scaleratio=1)


def _legend_lines(names: Sequence[str]) -> int:
    """How many lines the names take in a legend on paper, which is 680 pixels wide; a single name
    needs no legend.
    """
    if len(names) < 2:
        return 0
    entry = 45 + 7 * max(len(name) for name in names)
    return -(-len(names) // max(1, 680 // entry))


def _rounded(values: np.ndarray) -> list[float]:
    # Plain lists keep the page free of plotly's binary arrays, which older viewers do not read.
    return [float(f"{value:.4g}") for value in values]
