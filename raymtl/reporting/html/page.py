"""RUN/report.html: the tables and plots in one file."""

from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from raymtl.reporting.html import (
    embedding_plots,
    parallel_plot,
    pareto_plot,
    search_plots,
    training_plots,
    verdict,
)
from raymtl.reporting.html.collect import RunData, read_run, searched_names
from raymtl.reporting.html.panels import LEAST_SCORE
from raymtl.reporting.html.pictures import pictures
from raymtl.reporting.html.tables import (
    gain_rows,
    left_out_of_deltas,
    protocol,
    result_rows,
)
from raymtl.reporting.html.theme import ACCENT, FONT, to_html
from raymtl.reporting.html.values import duration, show, value_rows
from raymtl.storage import atomic


def write_report(run: Path) -> Path:
    """Writes RUN/report.html from what the run folder holds and returns its path.

    A run without summary.json is shown as far as it came, and is said to be incomplete. Raises
    UserError where a file of the run is damaged or config.yaml is missing.
    """
    page = render(read_run(run))
    path = run / "report.html"
    atomic.publish(path, lambda aside: aside.write_text(page, encoding="utf-8"))
    return path


def render(run: RunData) -> str:
    """The page as text."""
    # Every text is escaped; only plotly's own output and its library are marked as safe.
    environment = Environment(
        loader=PackageLoader("raymtl.reporting.html", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"show": show, "duration": duration, "breakable": breakable}
    return environment.get_template("page.html.jinja").render(
        run=run,
        summary=run.summary,
        accent=ACCENT,
        font=Markup(FONT),
        plotlyjs=Markup(get_plotlyjs()),
        **_tables(run),
        **_plots(run),
    )


def breakable(name: str) -> Markup:
    """A dotted name, escaped, that may go on in a new line behind each dot."""
    return Markup(".<wbr>").join(name.split("."))


def _tables(run: RunData) -> dict[str, Any]:
    rows = result_rows(run.summary)
    if rows:
        gains = gain_rows(rows[0])
    else:
        gains = []
    return {
        "outcome": verdict.outcome(rows),
        "progress": "" if run.complete else verdict.progress(run),
        "rows": rows,
        "left_out": left_out_of_deltas(run.summary),
        "protocol": protocol(run.summary),
        "gains": gains,
        "adapts": _adapts(run),
        "adaptation": verdict.adaptation(gains),
        "choice": verdict.choice(run) if run.searched else "",
        "values": value_rows(run.experiment, run.summary.get("best_values") or {}),
        "searched": searched_names(run.trials),
        "told_apart": embedding_plots.groups(run.embeddings).sentence,
        "pictures": pictures(run.examples, run.experiment.data.make_tasks(), run.experiment.data),
        "configuration": yaml.safe_dump(
            run.experiment.model_dump(mode="json"), sort_keys=False, default_flow_style=None
        ),
        "least_score": LEAST_SCORE,
        "num_complete": search_plots.num_complete(run.study),
    }


def _adapts(run: RunData) -> bool:
    """Whether any model of the run predicts otherwise after it has seen a support set."""
    models = run.summary["models"]
    if not models:
        return run.experiment.learner.uses_support
    return any(model.get("adapts", True) for model in models)


def _plots(run: RunData) -> dict[str, Markup | None]:
    figures = {
        "history": search_plots.history_plot(run) if run.searched else None,
        "importance": search_plots.importance_plot(run.study, run.objectives),
        "choices": search_plots.choices_plot(run) if run.searched else None,
        "parallel": parallel_plot.parallel_plot(run) if run.searched else None,
        "pareto": pareto_plot.pareto_plot(run) if run.searched else None,
        "losses": training_plots.loss_plot(run.history, adapts=_adapts(run)),
        "validation": training_plots.validation_plot(
            run.history, training_plots.hidden_scores(run)
        ),
        "curves": training_plots.adaptation_plot(run),
        "embeddings": embedding_plots.embedding_plot(run.embeddings),
        "relations": embedding_plots.relation_plot(run.relations),
    }
    return {f"{name}_plot": to_html(figure, name) for name, figure in figures.items()}
