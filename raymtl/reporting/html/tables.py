"""The tables as plain rows, for the page and for the command line alike."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from raymtl.reporting.html.collect import finite

LABELS = {
    "winner": "winner (of the search)",
    "model": "model",
    "default": "default (configuration as written)",
    "joint": "joint (zero inner steps)",
    "task_arithmetic": "task_arithmetic (single-task models merged)",
    "ties": "ties (single-task models merged)",
    "single-task": "single-task (one model a task)",
}
PHASES = ("before", "after", "gain")


class Estimate(NamedTuple):
    """A score and the half-width of its 95 % interval."""

    mean: float
    ci95: float

    def text(self, decimals: int, signed: bool = False) -> str:
        """`0.931 ± 0.010`; the mean alone where the interval is unknown."""
        sign = ""
        if signed:
            sign = "+"
        mean = f"{self.mean:{sign}.{decimals}f}".replace("-", "−")
        if math.isfinite(self.ci95):
            return f"{mean} ± {self.ci95:.{decimals}f}"
        return mean


class Cell(NamedTuple):
    """One model's value of one metric. `best` only where it is better than every other model's
    beyond chance.
    """

    before: Estimate | None
    after: Estimate | None
    gain: Estimate | None
    higher_is_better: bool
    decimals: int
    best: bool = False

    @property
    def before_text(self) -> str:
        """The mean before adaptation; empty for a model that does not adapt or predicts nothing
        unadapted.
        """
        moved = self.gain is None or self.gain != (0, 0)
        if self.before and moved:
            return f"{self.before.mean:.{self.decimals}f}".replace("-", "−")
        return ""

    @property
    def after_text(self) -> str:
        """The mean after adaptation with its interval."""
        if self.after:
            return self.after.text(self.decimals)
        return "–"

    @property
    def text(self) -> str:
        """`0.412 → 0.931 ± 0.010`."""
        if self.before_text:
            return f"{self.before_text} → {self.after_text}"
        return self.after_text


class ResultRow(NamedTuple):
    """A model of the result table; `cells` are `score` and each `TASK.METRIC`, equal in order over
    the rows.
    """

    name: str
    label: str
    cells: Mapping[str, Cell]
    delta_m: float | None
    delta_p: float | None
    delta_m_ci95: float | None = None
    delta_p_ci95: float | None = None
    scored: bool = True
    """Whether it has been evaluated, though its score may not be defined."""
    against: Mapping[str, Mapping[str, Any]] = {}
    """Other model -> score -> what this model's is above the other's, on the same held-out
    examples.
    """


class GainRow(NamedTuple):
    """What adaptation did to one metric; `effect` is 1 if better, -1 if worse, 0 if inside the
    interval.
    """

    metric: str
    cell: Cell
    effect: int


def result_rows(summary: Mapping[str, Any]) -> list[ResultRow]:
    """The result table of a summary.json: a row a model; before, after with its 95 % interval, and
    the deltas.
    """
    models = summary["models"]
    columns = dict.fromkeys(name for model in models for name in _scores(model))
    table = {column: _column(column, models) for column in columns}
    rows = []
    for index, model in enumerate(models):
        row = ResultRow(
            name=model["name"],
            label=LABELS.get(model["name"], model["name"]),
            cells={column: cells[index] for column, cells in table.items()},
            scored=bool(model.get("score") or model.get("tasks")),
            against=model.get("against") or {},
            delta_m=model.get("delta_m"),
            delta_p=model.get("delta_p"),
            delta_m_ci95=model.get("delta_m_ci95"),
            delta_p_ci95=model.get("delta_p_ci95"),
        )
        rows.append(row)
    return rows


def protocol(summary: Mapping[str, Any]) -> str:
    """A sentence on what was scored of the first model, and one on what models saw of it."""
    models = summary["models"]
    scored = None
    if models:
        scored = (models[0].get("scored") or {}).get("text")
    if scored:
        return f"{scored} {_transductive(models)}"
    return _transductive(models)


def _transductive(models: Sequence[Mapping[str, Any]]) -> str:
    seen = [model["name"] for model in models if model["transductive"]]
    if not seen:
        return "Not transductive: no statistic of the query set was used."
    if len(seen) == len(models):
        return "Transductive: the query set was seen as a whole."
    return (
        f"Transductive, the query set was seen as a whole: {', '.join(seen)}. The other models are "
        "not transductive."
    )


def compare(
    one: Estimate, other: Estimate, higher_is_better: bool, difference: Estimate | None = None
) -> int:
    """1 where `one` is better beyond chance, -1 where it is worse so, else 0.

    By whether the 95 % interval of the `difference` on the same examples excludes 0; in a run that
    kept none, by whether the two intervals are apart.
    """
    if difference is None:
        difference = Estimate(one.mean - other.mean, one.ci95 + other.ci95)
    if not abs(difference.mean) > difference.ci95:
        return 0
    if (difference.mean > 0) == higher_is_better:
        return 1
    return -1


def difference(model: Mapping[str, Any], other: str, column: str) -> Estimate | None:
    """What a model's score is above the other model's; None in a run that kept none."""
    return _estimate((model.get("against") or {}).get(other, {}).get(column))


def gain_rows(row: ResultRow) -> list[GainRow]:
    """What adaptation did to each metric of a model; none for a learner that predicts nothing
    unadapted.
    """
    return [
        GainRow(name, cell, compare(cell.gain, Estimate(0, 0), cell.higher_is_better))
        for name, cell in row.cells.items()
        if cell.gain is not None
    ]


def left_out_of_deltas(summary: Mapping[str, Any]) -> list[str]:
    """The metrics whose relative change says nothing, so that the deltas do without them."""
    columns = {
        name: scores for model in summary["models"] for name, scores in _scores(model).items()
    }
    return [
        name
        for name, scores in columns.items()
        if not scores.get("ratio_scale", True)
        and not name.endswith(".rrmse")  # which rmse stands for
    ]


def _scores(model: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """`score` and each `TASK.METRIC` -> before, after, gain."""
    tasks = {task: named for task, named in (model.get("tasks") or {}).items() if named}
    firsts = [next(iter(named.values())) for named in tasks.values()]
    score = model.get("score")
    if not score:
        score = {phase: _mean_over_tasks(firsts, phase) for phase in PHASES}
    metrics = {
        f"{task}.{name}": scores
        for task, named in tasks.items()
        for name, scores in named.items()
        if scores.get("shown", True)
    }
    return {"score": {**score, "higher_is_better": True}, **metrics}


def _mean_over_tasks(scores: Sequence[Mapping[str, Any]], phase: str) -> dict[str, float] | None:
    """The mean over tasks, for single-task models, which have no score together.

    Their episodes are not at hand together. The mean half-width bounds that of the mean, however
    they correlate.
    """
    estimates = [estimate for score in scores if (estimate := _estimate(score.get(phase)))]
    if not estimates or len(estimates) < len(scores):
        return None
    return {
        "mean": statistics.fmean(estimate.mean for estimate in estimates),
        "ci95": statistics.fmean(estimate.ci95 for estimate in estimates),
    }


def _column(column: str, models: Sequence[Mapping[str, Any]]) -> list[Cell]:
    values = [_scores(model).get(column, {}) for model in models]
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
        cell._replace(decimals=decimals, best=_best(column, index, models, cells))
        for index, cell in enumerate(cells)
    ]


def _best(
    column: str, index: int, models: Sequence[Mapping[str, Any]], cells: Sequence[Cell]
) -> bool:
    own, name = cells[index].after, models[index]["name"]
    rivals = {
        model["name"]: cell.after for model, cell in zip(models, cells, strict=True) if cell.after
    }
    rivals.pop(name, None)
    if own is None or not rivals:
        return False
    higher = cells[index].higher_is_better
    return all(
        compare(own, rival, higher, difference(models[index], other, column)) > 0
        for other, rival in rivals.items()
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
    if ci95 is None or not finite(ci95):
        # An unknown interval is infinitely wide, so that it excludes nothing.
        ci95 = math.inf
    return Estimate(float(value["mean"]), float(ci95))
