"""Looking at runs and methods: `trials`, `methods`, `report`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

import raymtl
from raymtl import run_folder
from raymtl.cli.options import AsJson, Run
from raymtl.reporting.console import plain_console
from raymtl.storage import strict_json
from raymtl.types import UserError

if TYPE_CHECKING:
    from raymtl.config import Experiment

SECTIONS: tuple[str, ...] = ("sharing", "weighting", "learner", "mode")
"""The sections of a configuration that choose a method."""


def trials(
    run: Run,
    number: Annotated[
        int | None, typer.Argument(metavar="[ID]", help="One trial, in full.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the trials of a search, or show one."""
    folder = run_folder.existing(run)
    searched = raymtl.Run(folder)
    rows = searched.trials.to_pylist()
    if number is not None:
        values = _trial(rows, number, run)
        if as_json:
            print(strict_json.dumps(values, indent=2))
            return
        for key, value in values.items():
            plain_console().print(f"{key}: {value}", highlight=False)
    elif as_json:
        print(strict_json.dumps(rows, indent=2))
    else:
        _print_trials(rows, searched.config)


def _trial(rows: list[dict[str, Any]], number: int, run: Path) -> dict[str, Any]:
    """The values of the trial with this number. Raises UserError if there is none."""
    for row in rows:
        if row["number"] == number:
            return {key: value for key, value in row.items() if value is not None}
    raise UserError(f"{run}: trial {number}: expected 0 to {rows[-1]['number']}, got {number}.")


def _print_trials(rows: list[dict[str, Any]], experiment: "Experiment") -> None:
    from raymtl.reporting.terminal import described

    metrics = experiment.tune.metrics
    table = Table(box=None, pad_edge=False)
    table.add_column("trial", justify="right", no_wrap=True)
    table.add_column("state", justify="left", no_wrap=True)
    for column in ("step", *metrics):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("values", overflow="fold")
    for row in rows:
        scores = [_five_digits(row.get(metric)) for metric in metrics]
        values = row.get("reason") or described(row, experiment.search)
        table.add_row(str(row["number"]), row["state"], str(row["step"]), *scores, values)
    plain_console(highlight=False).print(table)


def _five_digits(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.5g}"


def methods(
    section: Annotated[
        str | None, typer.Argument(help="sharing, weighting, learner or mode; all by default.")
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print docs/methods.md.")] = False,
) -> None:
    """List the methods: what each one does, what it costs and when it helps."""
    sections = SECTIONS
    if section is not None:
        if section not in SECTIONS:
            raise UserError(f"section: expected one of {', '.join(SECTIONS)}, got '{section}'.")
        sections = (section,)
    from raymtl.config import catalog

    if markdown:
        print(catalog.markdown(), end="")
        return
    for name in sections:
        heading, cost = catalog.HEADINGS[name]
        title, caption = f"\n{heading.replace('`', '')}", cost.replace("\n", " ")
        table = Table(box=None, pad_edge=False, title=title, caption=caption)
        table.title_justify = table.caption_justify = "left"
        for column in ("name", "what it does", "cost", "when it helps"):
            table.add_column(column, overflow="fold")
        for row in catalog.methods(name):
            table.add_row(row.name, row.what, row.cost, row.helps)
        plain_console(highlight=False).print(table)


def schema() -> None:
    """Print the JSON Schema of a configuration, by which editors complete and check it."""
    from raymtl.config import Experiment
    from raymtl.schema.json_schema import json_schema

    print(strict_json.dumps(json_schema(Experiment), indent=2))


def report(run: Run) -> None:
    """Write the run's report.html again."""
    folder = run_folder.existing(run)
    print(raymtl.Run(folder).report)
