"""Adapting the best model of a run to a new task: `adapt`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

import raymtl
from raymtl import run_folder
from raymtl.api.checks import AdaptOptions
from raymtl.cli.options import AsJson, Data, Run, hint_at_data_option, moved_paths, overrides
from raymtl.cli.tables import figure
from raymtl.reporting.console import plain_console
from raymtl.reporting.notes import notes_of, print_notes
from raymtl.storage import strict_json

Support = Annotated[
    Path | None,
    typer.Option(help="Examples: as the run's own files, or Parquet with `input` and one a task."),
]
Query = Annotated[
    Path | None,
    typer.Option(help="What to predict; the rows of --support without a label by default."),
]
TestEpisode = Annotated[
    int, typer.Option(min=0, help="Without --support: which held-out test episode to adapt to.")
]
Steps = Annotated[
    int | None, typer.Option(min=0, help="Inner steps; the learner's own by default.")
]
Name = Annotated[
    str | None,
    typer.Option(help="Folder under RUN/adapted; made from the support set by default."),
]
OnlyTask = Annotated[
    str | None,
    typer.Option(
        help="The only task that --support has labels of; where several have their own files."
    ),
]
TransferKind = Annotated[
    str | None,
    typer.Option(
        help="feature, model or target: to a task with a head of its own (docs/transfer.md)."
    ),
]
TransferValues = Annotated[
    list[str],
    typer.Option("--set", help="A value of the transfer: task.kind=regression, optimiser.lr=0.01."),
]


# Typer reads the command's options off the parameters, so there are as many as options.
def adapt(  # noqa: PLR0913  each is an option of the command
    run: Run,
    support: Support = None,
    query: Query = None,
    episode: TestEpisode = 0,
    steps: Steps = None,
    name: Name = None,
    task: OnlyTask = None,
    transfer: TransferKind = None,
    sets: TransferValues = [],  # noqa: B006
    data: Data = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """Adapt the run's best model to a new task; write the adapted model and its predictions."""
    values = overrides(sets)
    AdaptOptions(support, query, episode, steps, task, transfer, values).check()
    folder = run_folder.existing(run)
    with hint_at_data_option(data):
        written = raymtl.adapt(
            folder,
            support,
            query,
            episode=episode,
            steps=steps,
            name=name,
            task=task,
            transfer=transfer,
            values=values,
            data=moved_paths(data),
        ).written
    if as_json:
        print(strict_json.dumps(written, indent=2))
    elif transfer is None:
        _print_adapted(written)
    else:
        _print_transferred(written, transfer)


def _print_adapted(written: Mapping[str, Any]) -> None:
    console = plain_console(highlight=False, soft_wrap=True)
    console.print(_adapted_text(written))
    if written["scores"]:
        table = _score_table("before", "after")
        for metric, scores in written["scores"].items():
            table.add_row(metric, *map(_three_digits, scores))
        plain_console().print(table)
    print_notes(console, notes_of(written))
    console.print(f"{written['folder']}: model.safetensors, predictions.parquet")


def _adapted_text(written: Mapping[str, Any]) -> str:
    examples = f"{written['domain']} with {written['support_examples']} examples"
    if written["adapted"]:
        return f"adapted to {examples}"
    if not written["reads_support"]:
        return (
            f"nothing was adapted to {examples}: learner.name: none has no inner loop, and the "
            "predictions are those of the trained model. --transfer model trains on the examples "
            "(docs/transfer.md)."
        )
    return (
        f"nothing was adapted to {examples}: no inner steps are taken (learner.inner_steps), and "
        "the predictions are those of the trained model. --steps N takes some, --transfer model "
        "trains on the examples (docs/transfer.md)."
    )


def _print_transferred(written: Mapping[str, Any], kind: str) -> None:
    console = plain_console(soft_wrap=True)
    examples = f"{written['trained_on']} examples"
    if written["held_out"]:
        kept = f"step {written['step']} of {written['steps']}"
        examples += f", {kept} chosen by {written['held_out']} held-out ones"
    console.print(f"{kind} transfer to {written['domain']}: {examples}", highlight=False)
    test = written["test"] or {}
    columns = (written["validation"], test.get("before"), test.get("after"))
    scored = [scores for scores in columns if scores]
    if scored:
        table = _score_table("held out", "before", "after")
        for metric in scored[0]:
            table.add_row(metric, *(_figure(scores, metric) for scores in columns))
        console.print(table)
    console.print(
        f"{written['folder']}: model.safetensors, predictions.parquet, scores.json",
        highlight=False,
        markup=False,
    )


def _score_table(*columns: str) -> Table:
    """A table with a row for each metric."""
    table = Table(box=None, pad_edge=False)
    table.add_column("metric", justify="left")
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _three_digits(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}"


def _figure(scores: Mapping[str, Any] | None, metric: str) -> str:
    """The score with its interval, or without where too few examples give none; a dash for none."""
    if not scores:
        return "-"
    value = scores[metric]
    if value is None or value["mean"] is None:
        return "-"
    if value["ci95"] is not None:
        return figure(value)
    return _three_digits(value["mean"])
