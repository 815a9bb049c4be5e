"""Adapting the best model of a run to a new task: `adapt`."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from rich.table import Table

from raymtl import run_folder
from raymtl.cli.notes import notes_of, print_notes
from raymtl.cli.options import AsJson, Data, Run, hint_at_data_option, moved_paths, overrides
from raymtl.cli.tables import figure
from raymtl.reporting.console import plain_console
from raymtl.storage import strict_json
from raymtl.types import UserError

if TYPE_CHECKING:
    from raymtl.adaptation.request import AdaptationRequest

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


class AdaptOptions(NamedTuple):
    """The options of `adapt`."""

    run: Path
    support: Path | None
    query: Path | None
    episode: int
    steps: int | None
    name: str | None
    task: str | None
    transfer: str | None
    sets: list[str]
    data: list[str]

    def check(self) -> None:
        """Raises UserError for options that do not go together."""
        if self.support is not None and self.episode:
            raise UserError(
                "--episode: expected either --support or --episode, got both. Leave one away."
            )
        if self.query is not None and self.support is None:
            raise UserError(
                "--query: expected --support beside it, the examples to adapt to, got none. Add it."
            )
        if self.task is not None and self.support is None:
            raise UserError(
                "--task: expected --support beside it, the examples of the task, got none. Add it."
            )
        if self.transfer is not None and self.steps is not None:
            raise UserError(
                "--steps: expected none with --transfer, which has --set optimiser.steps=N. Leave "
                "it away."
            )
        if self.sets and self.transfer is None:
            raise UserError(
                f"--set: expected --transfer, whose values it sets, got {self.sets[0]} alone. Add "
                "--transfer."
            )

    def request(self) -> "AdaptationRequest":
        """What is adapted to."""
        from raymtl.adaptation.request import AdaptationRequest

        return AdaptationRequest(
            run=self.run,
            support=self.support,
            query=self.query,
            episode=self.episode,
            task=self.task,
            name=self.name,
            moved=moved_paths(self.data),
        )


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
    options = AdaptOptions(run, support, query, episode, steps, name, task, transfer, sets, data)
    options.check()
    options = options._replace(run=run_folder.existing(run))
    if transfer is None:
        written = _adapt(options)
    else:
        written = _transfer(options, transfer)
    if as_json:
        print(strict_json.dumps(written, indent=2))
    elif transfer is None:
        _print_adapted(written)
    else:
        _print_transferred(written, transfer)


def _adapt(options: AdaptOptions) -> dict[str, Any]:
    from raymtl.adaptation.adapt import adapt_run

    with hint_at_data_option(options.data):
        return adapt_run(options.request(), options.steps)


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
    return (
        f"nothing was adapted to {examples}: no inner steps are taken (learner.inner_steps), and "
        "the predictions are those of the trained model. --steps N takes some, --transfer model "
        "trains on the examples (docs/transfer.md)."
    )


def _transfer(options: AdaptOptions, kind: str) -> dict[str, Any]:
    from raymtl.adaptation.new_data import TransferRequest
    from raymtl.adaptation.transfer import parse_transfer
    from raymtl.adaptation.transfer_run import transfer_run
    from raymtl.reporting.terminal import View

    transfer = parse_transfer(kind, overrides(options.sets))
    with hint_at_data_option(options.data), View(f"raymtl adapt --transfer {kind}") as view:
        return transfer_run(TransferRequest(options.request(), transfer), view)


def _print_transferred(written: Mapping[str, Any], kind: str) -> None:
    console = plain_console(soft_wrap=True)
    examples = f"{written['trained_on']} examples"
    if written["held_out"]:
        examples += f", step {written['step']} chosen by {written['held_out']} held-out ones"
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
