"""The tables as plain rows, for the page and for the command line alike."""

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from raymtl.config import Experiment
from raymtl.report.collect import finite

LABELS = {
    "winner": "winner (of the search)",
    "model": "model",
    "default": "default (configuration as written)",
    "joint": "joint (zero inner steps)",
    "single-task": "single-task (one model a task)",
}
PHASES = ("before", "after", "gain")


class Estimate(NamedTuple):
    """A mean over episodes and the half-width of its 95 % interval."""

    mean: float
    ci95: float

    def text(self, decimals: int, signed: bool = False) -> str:
        """`0.931 ± 0.010`; the mean alone where the interval is unknown."""
        mean = f"{self.mean:{'+' if signed else ''}.{decimals}f}".replace("-", "−")
        return f"{mean} ± {self.ci95:.{decimals}f}" if math.isfinite(self.ci95) else mean


class Cell(NamedTuple):
    """One model's value of one metric. `best` only where the interval excludes every other model's."""

    before: Estimate | None
    after: Estimate | None
    gain: Estimate | None
    higher_is_better: bool
    decimals: int
    best: bool = False

    @property
    def before_text(self) -> str:
        """The mean before adaptation; empty for a model that does not adapt or predicts nothing unadapted."""
        moved = self.gain is None or self.gain != (0, 0)
        return f"{self.before.mean:.{self.decimals}f}".replace("-", "−") if self.before and moved else ""

    @property
    def after_text(self) -> str:
        """The mean after adaptation with its interval."""
        return self.after.text(self.decimals) if self.after else "–"

    @property
    def text(self) -> str:
        """`0.412 → 0.931 ± 0.010`."""
        return f"{self.before_text} → {self.after_text}" if self.before_text else self.after_text


class ResultRow(NamedTuple):
    """A model of the result table; `cells` are `score` and each `TASK.METRIC`, equal in order over the rows."""

    name: str
    label: str
    cells: Mapping[str, Cell]
    delta_m: float | None
    delta_p: float | None


class GainRow(NamedTuple):
    """What adaptation did to one metric; `effect` is 1 if better, -1 if worse, 0 if inside the interval."""

    metric: str
    cell: Cell
    effect: int


def result_rows(summary: Mapping[str, Any]) -> list[ResultRow]:
    """The result table of a summary.json: a row a model; before, after with its 95 % interval, and the deltas."""
    models = summary["models"]
    columns = dict.fromkeys(name for model in models for name in _scores(model))
    table = {column: _column([_scores(model).get(column, {}) for model in models]) for column in columns}
    return [
        ResultRow(
            name=model["name"],
            label=LABELS.get(model["name"], model["name"]),
            cells={column: cells[index] for column, cells in table.items()},
            delta_m=model.get("delta_m"),
            delta_p=model.get("delta_p"),
        )
        for index, model in enumerate(models)
    ]


def protocol(summary: Mapping[str, Any]) -> str:
    """Whether the scores are transductive, a sentence."""
    models = summary["models"]
    seen = [model["name"] for model in models if model["transductive"]]
    if not seen:
        return "Not transductive: no statistic of the query set was used."
    if len(seen) == len(models):
        return "Transductive: the query set was seen as a whole."
    return f"Transductive, the query set was seen as a whole: {', '.join(seen)}. The other models are not transductive."


def compare(one: Estimate, other: Estimate, higher_is_better: bool) -> int:
    """1 where `one` is better and the intervals do not overlap, -1 where it is worse so, else 0."""
    distance = (one.mean - other.mean) * (1 if higher_is_better else -1)
    apart = abs(distance) > one.ci95 + other.ci95
    return (1 if distance > 0 else -1) if apart else 0


def gain_rows(row: ResultRow) -> list[GainRow]:
    """What adaptation did to each metric of a model; none for a learner that predicts nothing unadapted."""
    return [
        GainRow(name, cell, compare(cell.gain, Estimate(0, 0), cell.higher_is_better))
        for name, cell in row.cells.items()
        if cell.gain is not None
    ]


def value_rows(experiment: Experiment, best: Mapping[str, Any]) -> list[dict[str, str]]:
    """The winner's searched values beside the configuration's own and the domain."""
    own = experiment.flat()
    return [
        {"name": name, "value": show(value), "default": show(own.get(name)), "domain": domain_text(experiment, name)}
        for name, value in best.items()
    ]


def domain_text(experiment: Experiment, name: str) -> str:
    """The domain of a dotted value in words; a simplex is one domain for several values."""
    domain = experiment.search.get(name) or experiment.search.get(name.rpartition(".")[0])
    if domain is None:
        return ""
    fields = domain.model_dump(mode="json")
    conditions = fields.pop("when")
    kind, content = next(iter(fields.items()))
    if kind == "choice":
        text = "one of " + ", ".join("null" if value is None else show(value) for value in content)
    elif kind == "simplex":
        text = "weights that sum to 1"
    else:
        words = {"log_uniform": "log-uniform", "uniform": "uniform", "int": "whole number"}
        text = f"{words[kind]}, {show(content[0])} to {show(content[1])}"
    when = " and ".join(f"{key} is {show(value)}" for key, value in conditions.items())
    return f"{text}; only where {when}" if when else text


def show(value: Any) -> str:
    """A value as a reader wants it: four significant digits, a dash for none, JSON for a list or mapping."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.0f}" if 1e4 <= abs(value) < 1e9 else f"{value:.4g}"
    return json.dumps(value) if isinstance(value, list | dict | bool) else str(value)


def duration(seconds: float) -> str:
    """`3 min 10 s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.3g} s"


def left_out_of_deltas(summary: Mapping[str, Any]) -> list[str]:
    """The metrics whose relative change says nothing, so that the deltas do without them."""
    columns = {name: scores for model in summary["models"] for name, scores in _scores(model).items()}
    return [name for name, scores in columns.items() if not scores.get("ratio_scale", True)]


def _scores(model: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """`score` and each `TASK.METRIC` -> before, after, gain."""
    tasks = {task: named for task, named in (model.get("tasks") or {}).items() if named}
    firsts = [next(iter(named.values())) for named in tasks.values()]
    # A score is the mean of the tasks' first metrics, so it runs their way.
    higher = not firsts or any(scores.get("higher_is_better", True) for scores in firsts)
    score = model.get("score") or {key: _mean([first.get(key) for first in firsts]) for key in PHASES}
    metrics = {f"{task}.{name}": scores for task, named in tasks.items() for name, scores in named.items()}
    return {"score": {**score, "higher_is_better": higher}, **metrics}


def _mean(values: Sequence[Any]) -> dict[str, float] | None:
    """The mean over tasks, for single-task models, which have no score of their own.

    Their episodes are not at hand together. The mean half-width bounds that of the mean, however they correlate.
    """
    estimates = [estimate for value in values if (estimate := _estimate(value))]
    if not estimates or len(estimates) < len(values):
        return None
    return {key: statistics.fmean(getattr(estimate, key) for estimate in estimates) for key in ("mean", "ci95")}


def _column(values: Sequence[Mapping[str, Any]]) -> list[Cell]:
    cells = [
        Cell(
            before=_estimate(value.get("before")),
            after=_estimate(value.get("after")),
            gain=_estimate(value.get("gain")),
            higher_is_better=bool(value.get("higher_is_better", True)),
            decimals=0,
        )
        for value in values
    ]
    decimals = _decimals(cell.after.ci95 for cell in cells if cell.after)
    return [
        cell._replace(decimals=decimals, best=_best(cell, cells[:index] + cells[index + 1 :]))
        for index, cell in enumerate(cells)
    ]


def _best(cell: Cell, others: Sequence[Cell]) -> bool:
    rivals = [other.after for other in others if other.after]
    return bool(cell.after and rivals) and all(
        cell.after is not None and compare(cell.after, rival, cell.higher_is_better) > 0 for rival in rivals
    )


def _decimals(intervals: Iterable[float]) -> int:
    """Two significant digits of the median interval, for the whole column."""
    known = [interval for interval in intervals if math.isfinite(interval) and interval > 0]
    if not known:
        return 3
    return min(max(1 - math.floor(math.log10(statistics.median(known))), 0), 8)


def _estimate(value: Any) -> Estimate | None:
    if not isinstance(value, Mapping) or not finite(value.get("mean")):
        return None
    ci95 = value.get("ci95")
    # An unknown interval is infinitely wide, so that it excludes nothing.
    return Estimate(float(value["mean"]), float(ci95) if ci95 is not None and finite(ci95) else math.inf)
