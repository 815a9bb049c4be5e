"""What there is, and what a run came to: `trials`, `methods`, `report`."""

from typing import Annotated, Any

import typer
from rich.table import Table

from raymtl import run_folder
from raymtl.cli.options import AsJson, Run
from raymtl.config import Experiment, load
from raymtl.reporting.console import plain_console
from raymtl.reporting.terminal import described
from raymtl.storage import formats, strict_json
from raymtl.types import UserError


def trials(
    run: Run,
    number: Annotated[
        int | None, typer.Argument(metavar="[ID]", help="One trial, in full.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the trials of a search, or show one."""
    rows = formats.read_rows(run_folder.existing(run) / "trials.parquet")
    if rows and not {"number", "state", "step"} <= set(rows[0]):
        raise UserError(
            f"{run / 'trials.parquet'}: expected the columns number, state and step, got "
            f"{list(rows[0])}."
        )
    if not rows:
        raise UserError(
            f"{run}: expected a search with trials, got none yet. Start one with `raymtl tune`."
        )
    if number is not None:
        chosen = next((row for row in rows if row["number"] == number), None)
        if chosen is None:
            raise UserError(
                f"{run}: trial {number}: expected 0 to {rows[-1]['number']}, got {number}."
            )
        rows = [{key: value for key, value in chosen.items() if value is not None}]
    if as_json:
        print(strict_json.dumps(rows if number is None else rows[0], indent=2))
        return
    if number is not None:
        for key, value in rows[0].items():
            plain_console().print(f"{key}: {value}", highlight=False)
        return
    _print_trials(rows, load(run / "config.yaml"))


def _print_trials(rows: list[dict[str, Any]], experiment: Experiment) -> None:
    metrics = experiment.tune.metrics
    table = Table(box=None, pad_edge=False)
    for column in ("trial", "state", "step", *metrics):
        table.add_column(column, justify="left" if column == "state" else "right", no_wrap=True)
    table.add_column("values", overflow="fold")
    for row in rows:
        scores = ("" if row.get(metric) is None else f"{row[metric]:.5g}" for metric in metrics)
        values = described(row, experiment.search)
        table.add_row(
            str(row["number"]), row["state"], str(row["step"]), *scores, row.get("reason") or values
        )
    plain_console(highlight=False).print(table)


def methods(
    section: Annotated[
        str | None, typer.Argument(help="sharing, weighting, learner or mode; all by default.")
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print docs/methods.md.")] = False,
) -> None:
    """List what there is to choose from: what each method does, what it costs, when it helps."""
    from raymtl.config import catalog as known

    if markdown:
        print(known.markdown(), end="")
        return
    if section is not None and section not in known.HEADINGS:
        raise UserError(f"section: expected one of {', '.join(known.HEADINGS)}, got '{section}'.")
    for name in [section] if section else known.HEADINGS:
        heading, about = known.HEADINGS[name]
        table = Table(
            box=None,
            pad_edge=False,
            title=f"\n{heading.replace('`', '')}",
            caption=about.replace("\n", " "),
        )
        table.title_justify = table.caption_justify = "left"
        for column in ("name", "what it does", "cost", "when it helps"):
            table.add_column(column, overflow="fold")
        for row in known.methods(name):
            table.add_row(row.name, row.what, row.cost, row.helps)
        plain_console(highlight=False).print(table)


def report(run: Run) -> None:
    """Write the run's report.html again."""
    from raymtl.reporting.html import write_report

    print(write_report(run_folder.existing(run)))
