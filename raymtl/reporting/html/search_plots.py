"""Plots of a search: its history, what mattered, and what the choices reached."""

import itertools
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import optuna
import plotly.graph_objects as go

from raymtl.reporting.html.collect import Row, RunData, drawable, finite, searched_names
from raymtl.reporting.html.theme import ACCENT, GREY, INK, colour, literal, panels, place, whole
from raymtl.reporting.html.values import show
from raymtl.schema.distributions import Choice

NEEDED_FOR_IMPORTANCE = 4  # complete trials
LOOKS = {
    "complete": {"color": ACCENT, "symbol": "circle"},
    "pruned": {"color": "#E69F00", "symbol": "triangle-down"},
    "failed": {"color": "#D55E00", "symbol": "x"},
    "running": {"color": GREY, "symbol": "circle-open"},
}


def history_plot(run: RunData) -> go.Figure | None:
    """Each objective by trial number, by state, with the best so far of the complete trials."""
    if not run.trials:
        return None
    objectives = run.objectives
    figure = panels(
        [titled(name, mode) for name, mode in objectives.items()], columns=1, legend=1, height=300
    )
    for index, (name, mode) in enumerate(objectives.items()):
        at = place(index, len(objectives), columns=1)
        scored = [row for row in run.trials if finite(row.get(name))]
        values = drawable([row[name] for row in scored], mode)
        heights = {row["number"]: value for row, value in zip(scored, values, strict=True)}
        edge = _worse_edge(values, mode)
        figure.add_trace(_best_so_far(run.trials, name, mode, first=index == 0), **at)
        for state in LOOKS:
            rows = [row for row in run.trials if row["state"] == state]
            if rows:
                figure.add_trace(_points(rows, name, heights, state, edge, first=index == 0), **at)
        best = next(
            (row for row in run.trials if row["number"] == run.summary.get("best_trial")), None
        )
        if best and finite(best.get(name)):
            figure.add_trace(_winner(best["number"], best[name], first=index == 0), **at)
        figure.update_yaxes(title_text=literal(name), **at)
        figure.update_xaxes(
            title_text="trial number", **whole(max(row["number"] for row in run.trials)), **at
        )
    return figure


def _worse_edge(values: Sequence[float], mode: str) -> float:
    """Where the trials without a value stand: beyond the worst one."""
    if not values:
        return 0.0
    margin = 0.08 * (max(values) - min(values) or 1)
    if mode == "max":
        return min(values) - margin
    return max(values) + margin


def _points(
    rows: Sequence[Row],
    name: str,
    heights: Mapping[int, float],
    state: str,
    edge: float,
    first: bool,
) -> go.Scatter:
    marker: dict[str, Any] = {**LOOKS[state], "size": 9, "line": {}}
    if "open" not in LOOKS[state]["symbol"]:
        marker["line"] = {"width": 1, "color": "white"}
    return go.Scatter(
        x=[row["number"] for row in rows],
        y=[heights.get(row["number"], edge) for row in rows],
        text=[described(row, name) for row in rows],
        hovertemplate="%{text}<extra></extra>",
        mode="markers",
        name=state,
        legendgroup=state,
        showlegend=first,
        marker=marker,
    )


def described(row: Row, name: str) -> str:
    facts = [
        f"trial {row['number']}, {row['state']}, step {show(row.get('step'))}",
        f"{name}: {show(row.get(name))}",
    ]
    facts += [f"{key}: {show(row[key])}" for key in searched_names([row]) if row[key] is not None]
    if row.get("reason"):
        facts.append(str(row["reason"])[:120])
    return "<br>".join(literal(fact) for fact in facts)


def _best_so_far(trials: Sequence[Row], name: str, mode: str, first: bool) -> go.Scatter:
    better = min
    if mode == "max":
        better = max
    ended = [row for row in trials if row["state"] == "complete" and finite(row.get(name))]
    numbers = [row["number"] for row in ended]
    best = list(itertools.accumulate((row[name] for row in ended), better))
    if ended:  # the line goes on to the last trial
        numbers.append(max(row["number"] for row in trials))
        best.append(best[-1])
    return go.Scatter(
        x=numbers,
        y=best,
        mode="lines",
        name="best complete so far",
        legendgroup="best",
        showlegend=first,
        hoverinfo="skip",
        line={"shape": "hv", "color": "#5b6470", "width": 1.5},
    )


def _winner(number: int, value: float, first: bool) -> go.Scatter:
    ring = {"symbol": "circle-open", "size": 18, "color": INK, "line": {"width": 2}}
    return go.Scatter(
        x=[number],
        y=[value],
        mode="markers",
        name="best trial",
        legendgroup="winner",
        marker=ring,
        hoverinfo="skip",
        showlegend=first,
    )


def importance_plot(study: optuna.Study | None, objectives: Mapping[str, str]) -> go.Figure | None:
    """Share of each searched value in the spread of the objective (PED-ANOVA); None where Optuna
    cannot tell.

    Of the values that all complete trials have: one that few have would be judged by those few,
    against the rest.
    """
    if study is None or num_complete(study) < NEEDED_FOR_IMPORTANCE:
        return None
    complete = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    common = set(complete[0].params).intersection(*(trial.params for trial in complete))
    shares = _importances(study, objectives, [n for n in complete[0].params if n in common])
    names = list(dict.fromkeys(itertools.chain(*shares.values())))
    if not names:
        return None
    return _importance_bars(names, shares)


def _importance_bars(names: Sequence[str], shares: Mapping[str, Mapping[str, float]]) -> go.Figure:
    """A bar for each searched value and objective."""
    height = 34 * len(names) * len(shares) + 20
    figure = panels([""], columns=1, legend=int(len(shares) > 1), height=height)
    for index, (objective, share) in enumerate(shares.items()):
        values = [share.get(name, 0.0) for name in names]
        figure.add_trace(
            go.Bar(
                x=values,
                # A simplex is drawn from uniform numbers that Optuna knows as KEY.NAME:u.
                y=[literal(name.removesuffix(":u")) for name in names],
                text=[f"{value:.0%}" for value in values],
                textposition="outside",
                cliponaxis=False,
                orientation="h",
                name=literal(objective),
                marker_color=colour(index),
                hoverinfo="skip",
            )
        )
    most = max(max(share.values()) for share in shares.values())
    figure.update_xaxes(
        title_text="share of importance", tickformat=".0%", range=[0, min(1.12 * most, 1.12)]
    )
    figure.update_yaxes(autorange="reversed", showgrid=False)
    return figure


def _importances(
    study: optuna.Study, objectives: Iterable[str], params: list[str]
) -> dict[str, dict[str, float]]:
    """Objective -> parameter -> its importance, for the objectives that have one."""
    importances: dict[str, dict[str, float]] = {}
    for index, name in enumerate(objectives):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                importances[name] = optuna.importance.get_param_importances(
                    study, params=params, target=_target(index)
                )
        except (ValueError, RuntimeError, TypeError, ZeroDivisionError):
            continue
    return importances


def choices_plot(run: RunData) -> go.Figure | None:
    """The first objective of every trial by what it chose, a panel for each searched choice of
    several names.
    """
    objective, mode = next(iter(run.objectives.items()), ("", "max"))
    rows = [
        row
        for row in run.trials
        if row["state"] in ("complete", "pruned") and finite(row.get(objective))
    ]
    tried, most = _tried_choices(run, rows)
    if not tried:
        return None
    names = sorted(tried, key=lambda name: -len(tried[name]))
    # One below the other: the names beside a panel need room.
    figure = panels(names, columns=1, legend=1, height=max(70, 26 * most))
    for index, name in enumerate(names):
        at = place(index, len(names), columns=1)
        for state in ("pruned", "complete"):
            of_state = [row for row in tried[name] if row["state"] == state]
            figure.add_scatter(
                x=drawable([row[objective] for row in of_state], mode),
                y=[literal(show(row[name])) for row in of_state],
                text=[described(row, objective) for row in of_state],
                hovertemplate="%{text}<extra></extra>",
                mode="markers",
                name=state,
                legendgroup=state,
                showlegend=index == 0,
                marker={**LOOKS[state], "size": 9, "opacity": 0.75},
                **at,
            )
        figure.update_yaxes(
            categoryorder="array",
            categoryarray=_worst_first(tried[name], name, objective, mode),
            **at,
        )
        figure.update_xaxes(title_text=literal(objective), **at)
    return figure


def _tried_choices(run: RunData, rows: Sequence[Row]) -> tuple[dict[str, list[Row]], int]:
    """The trials by the searched choice that they made, where several names were chosen; and the
    largest number of names.
    """
    tried: dict[str, list[Row]] = {}
    most = 0
    for name, distribution in run.experiment.search.items():
        if not isinstance(distribution, Choice) or len(distribution.choice) < 2:
            continue
        deciding = [row for row in rows if row.get(name) is not None]
        num_names = len({show(row[name]) for row in deciding})
        if num_names > 1:
            tried[name] = deciding
            most = max(most, num_names)
    return tried, most


def _worst_first(rows: Sequence[Row], name: str, objective: str, mode: str) -> list[str]:
    """The choices by their best trial, the best of all last, which plotly draws on top; pruned
    trials count below.
    """
    sign = -1
    if mode == "max":
        sign = 1
    best: dict[str, tuple[bool, float]] = {}
    for row in rows:
        label = literal(show(row[name]))
        reached = (row["state"] == "complete", sign * row[objective])
        best[label] = max(best.get(label, reached), reached)
    return sorted(best, key=lambda label: best[label])


def num_complete(study: optuna.Study | None) -> int:
    """Trials that Optuna counts as complete."""
    if study:
        return len(study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,)))
    return 0


def _target(index: int) -> Any:
    return lambda trial: trial.values[index]


def titled(name: str, mode: str) -> str:
    if mode == "max":
        return f"{name} (higher is better)"
    return f"{name} (lower is better)"
