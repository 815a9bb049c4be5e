"""What becomes of a run's best model: `evaluate`, `adapt`."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from raymtl import run_folder
from raymtl.cli.notes import print_notes
from raymtl.cli.options import AsJson, Data, Run, overrides, places
from raymtl.cli.tables import figure, print_scores
from raymtl.notes import Note
from raymtl.reporting.console import plain_console
from raymtl.storage import strict_json
from raymtl.types import UserError

GONE = "where there is none."
"""The end of what is said of files that are not there."""


def evaluate(
    run: Run,
    split: Annotated[str, typer.Option(help="val or test.")] = "test",
    episodes: Annotated[
        int | None, typer.Option(min=2, help="Episodes; the configuration's own by default.")
    ] = None,
    data: Data = [],  # noqa: B006
    predictions: Annotated[
        Path | None,
        typer.Option(
            help="A Parquet file to write: what the model predicts of every row of the split."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Score the run's best model on held-out episodes, before and after adaptation."""
    from raymtl.evaluation.evaluate import evaluate as score
    from raymtl.evaluation.evaluate import load_model
    from raymtl.evaluation.predictions import write_held_out

    if split not in ("val", "test"):
        raise UserError(f"--split: expected val or test, got '{split}'.")
    experiment, algorithm, params = load_model(run_folder.existing(run) / "best")
    if data:
        experiment = experiment.model_copy(update={"data": experiment.data.moved(places(data))})
    with _found(data):
        arrays = experiment.data.load()
    if predictions is not None:
        rows = write_held_out(predictions, experiment.data, algorithm, params, arrays, split)  # type: ignore[arg-type]
    found = score(experiment, algorithm, params, arrays, split=split, episodes=episodes)  # type: ignore[arg-type]
    metrics = found.metrics
    if as_json:
        print(strict_json.dumps(metrics, indent=2))
        return
    print_scores([{"name": "best", "score": metrics["score"], "tasks": metrics["tasks"]}])
    if metrics["transductive"]:
        kind = "Transductive"
    else:
        kind = "Not transductive"
    text = f"{metrics['scored']['text']} {kind}; ± is half of the 95 % interval."
    if episodes and metrics["episodes"] is None:
        text += " --episodes has nothing to choose: this model does not adapt."
    console = plain_console(soft_wrap=True)
    console.print(text)
    print_notes(console, [Note(**note) for note in metrics["notes"]])
    if data:
        print_notes(console, experiment.data.notes(arrays))
    if predictions is not None:
        console.print(f"{predictions}: {rows} rows", highlight=False)


def adapt(
    run: Run,
    support: Annotated[
        Path | None,
        typer.Option(
            help="Examples: as the run's own files, or Parquet with `input` and one a task."
        ),
    ] = None,
    query: Annotated[
        Path | None,
        typer.Option(help="What to predict; the rows of --support without a label by default."),
    ] = None,
    episode: Annotated[
        int, typer.Option(min=0, help="Without --support: which held-out test episode to adapt to.")
    ] = 0,
    steps: Annotated[
        int | None, typer.Option(min=0, help="Inner steps; the learner's own by default.")
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(help="Folder under RUN/adapted; made from the support set by default."),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="The only task that --support has labels of; where several have their own files."
        ),
    ] = None,
    transfer: Annotated[
        str | None,
        typer.Option(
            help="feature, model or target: to a task with a head of its own (docs/transfer.md)."
        ),
    ] = None,
    sets: Annotated[
        list[str],
        typer.Option(
            "--set", help="A value of the transfer: task.kind=regression, optimiser.lr=0.01."
        ),
    ] = [],  # noqa: B006
    data: Data = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """Adapt the run's best model to a new task; write the adapted model and its predictions."""
    from raymtl.adaptation.adapt import adapt_run

    if support is not None and episode:
        raise UserError(
            "--episode: expected either --support or --episode, got both. Leave one away."
        )
    if query is not None and support is None:
        raise UserError(
            "--query: expected --support beside it, the examples to adapt to, got none. Add it."
        )
    if task is not None and support is None:
        raise UserError(
            "--task: expected --support beside it, the examples of the task, got none. Add it."
        )
    if transfer is not None:
        if steps is not None:
            raise UserError(
                "--steps: expected none with --transfer, which has --set optimiser.steps=N. Leave "
                "it away."
            )
        _transfer(
            run_folder.existing(run),
            transfer,
            overrides(sets),
            support,
            query,
            episode,
            name,
            places(data),
            task,
            as_json,
        )
        return
    if sets:
        raise UserError(
            f"--set: expected --transfer, whose values it sets, got {sets[0]} alone. Add "
            "--transfer."
        )
    with _found(data):
        written = adapt_run(
            run_folder.existing(run), support, episode, steps, name, query, places(data), task
        )
    if as_json:
        print(strict_json.dumps(written, indent=2))
        return
    console = plain_console(highlight=False, soft_wrap=True)
    console.print(_said(written))
    if written["scores"]:
        table = Table(box=None, pad_edge=False)
        for column in ("metric", "before", "after"):
            table.add_column(column, justify="left" if column == "metric" else "right")
        for metric, (before, after) in written["scores"].items():
            table.add_row(
                metric, *("-" if value is None else f"{value:.3f}" for value in (before, after))
            )
        plain_console().print(table)
    print_notes(console, [Note(**note) for note in written["notes"]])
    console.print(f"{written['folder']}: model.safetensors, predictions.parquet")


@contextmanager
def _found(data: list[str]) -> Iterator[None]:
    """Names --data where the files of the run are not where they were."""
    try:
        yield
    except UserError as error:
        if data or not str(error).endswith(GONE):
            raise
        raise UserError(f"{error} Where they have moved, add --data PATH.") from None


def _said(written: Mapping[str, Any]) -> str:
    examples = f"{written['domain']} with {written['support_examples']} examples"
    if written["adapted"]:
        return f"adapted to {examples}"
    return (
        f"nothing was adapted to {examples}: no inner steps are taken (learner.inner_steps), and "
        "the predictions are those of the trained model. --steps N takes some, --transfer model "
        "trains on the examples (docs/transfer.md)."
    )


def _figure(scores: Mapping[str, Any] | None, metric: str) -> str:
    """The score with its interval; alone where too few examples give it none, and a dash where
    there is none.
    """
    if scores:
        value = scores[metric]
    else:
        value = None
    if value is None or value["mean"] is None:
        return "-"
    if value["ci95"] is not None:
        return figure(value)
    return f"{value['mean']:.3f}"


def _transfer(
    run: Path,
    way: str,
    values: Mapping[str, Any],
    support: Path | None,
    query: Path | None,
    episode: int,
    name: str | None,
    moved: Mapping[str, str],
    task: str | None,
    as_json: bool,
) -> None:
    from raymtl.adaptation.transfer import parse_transfer
    from raymtl.adaptation.transfer_run import transfer_run
    from raymtl.reporting.terminal import View

    chosen = parse_transfer(way, values)
    with _found(list(moved)), View(f"raymtl adapt --transfer {way}") as view:
        written = transfer_run(run, chosen, support, episode, name, view, query, moved, task)
    if as_json:
        print(strict_json.dumps(written, indent=2))
        return
    told = [f"{written['trained_on']} examples"]
    told += (
        [f"step {written['step']} chosen by {written['held_out']} held-out ones"]
        if written["held_out"]
        else []
    )
    console = plain_console(soft_wrap=True)
    console.print(f"{way} transfer to {written['domain']}: {', '.join(told)}", highlight=False)
    table = Table(box=None, pad_edge=False)
    for column in ("metric", "held out", "before", "after"):
        table.add_column(column, justify="left" if column == "metric" else "right")
    parts = (
        written["validation"],
        *((written["test"] or {}).get(when) for when in ("before", "after")),
    )
    for metric in next((part for part in parts if part), {}):
        table.add_row(metric, *(_figure(part, metric) for part in parts))
    if table.rows:
        console.print(table)
    console.print(
        f"{written['folder']}: model.safetensors, predictions.parquet, scores.json",
        highlight=False,
        markup=False,
    )
