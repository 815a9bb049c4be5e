"""The Pareto front of a search with several objectives."""

import itertools
from collections.abc import Iterable, Sequence

import plotly.graph_objects as go

from raymtl.reporting.html.collect import Row, RunData, finite
from raymtl.reporting.html.search_plots import LOOKS, described, titled
from raymtl.reporting.html.theme import literal, panels, place

ON_FRONT = "on the front"


def pareto_plot(run: RunData) -> go.Figure | None:
    """Each pair of objectives against each other, with the trials of the front; None for a single
    objective.
    """
    pairs = list(itertools.combinations(run.objectives, 2))
    front = set(run.summary.get("pareto") or [])
    rows = [row for row in run.trials if _has_all(row, run.objectives)]
    if not pairs or not rows:
        return None
    figure = panels([""] * len(pairs), columns=2, legend=1, height=340)
    on_front = [row for row in rows if row["number"] in front]
    groups = [(ON_FRONT, on_front, {"color": "#D55E00", "symbol": "diamond"})]
    others = [row for row in rows if row["number"] not in front]
    for state, look in LOOKS.items():
        groups.append((state, [row for row in others if row["state"] == state], look))
    for index, (across, up) in enumerate(pairs):
        at = place(index, len(pairs), columns=2)
        for label, group, look in groups:
            group = sorted(group, key=lambda row: row[across])
            if group:
                figure.add_trace(_cloud(group, across, up, label, look, first=index == 0), **at)
        figure.update_xaxes(title_text=literal(titled(across, run.objectives[across])), **at)
        figure.update_yaxes(title_text=literal(titled(up, run.objectives[up])), **at)
    return figure


def _has_all(row: Row, names: Iterable[str]) -> bool:
    return all(finite(row.get(name)) for name in names)


def _cloud(
    rows: Sequence[Row], across: str, up: str, label: str, look: dict[str, str], first: bool
) -> go.Scatter:
    size = 8
    if label == ON_FRONT:
        size = 12
    return go.Scatter(
        x=[row[across] for row in rows],
        y=[row[up] for row in rows],
        text=[described(row, up) for row in rows],
        hovertemplate="%{text}<extra></extra>",
        mode="markers",
        name=label,
        legendgroup=label,
        showlegend=first,
        marker={**look, "size": size},
    )
