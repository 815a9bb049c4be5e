"""Scoring the best model of a run: `evaluate`."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

import raymtl
from raymtl import run_folder
from raymtl.api.checks import check_split
from raymtl.cli.options import AsJson, Data, Run, hint_at_data_option, moved_paths
from raymtl.cli.tables import print_scores
from raymtl.reporting.console import plain_console
from raymtl.reporting.notes import notes_of, print_notes
from raymtl.storage import strict_json

if TYPE_CHECKING:
    from raymtl.storage.notes import Note

SplitName = Annotated[str, typer.Option(help="val or test.")]
Episodes = Annotated[
    int | None, typer.Option(min=2, help="Episodes; the configuration's own by default.")
]
Predictions = Annotated[
    Path | None,
    typer.Option(
        help="A Parquet file to write: what the model predicts of every row of the split."
    ),
]


def evaluate(
    run: Run,
    split: SplitName = "test",
    episodes: Episodes = None,
    data: Data = [],  # noqa: B006
    predictions: Predictions = None,
    as_json: AsJson = False,
) -> None:
    """Score the run's best model on held-out episodes, before and after adaptation."""
    check_split(split)
    folder = run_folder.existing(run)
    notes: list[Note] = []
    with hint_at_data_option(data):
        metrics = raymtl.evaluate(
            folder,
            split=split,
            episodes=episodes,
            data=moved_paths(data),
            predictions=predictions,
            announce=notes.extend,
        )
    if as_json:
        print(strict_json.dumps(metrics, indent=2))
        return
    ignored = bool(episodes) and metrics["episodes"] is None
    console = _print_evaluation(metrics, episodes_ignored=ignored)
    print_notes(console, notes)
    if predictions is not None:
        from raymtl.storage import formats

        rows = len(formats.read_table(predictions))
        console.print(f"{predictions}: {rows} rows", highlight=False)


def _print_evaluation(metrics: Mapping[str, Any], *, episodes_ignored: bool) -> Console:
    """Prints the scores, how they were made, and the notes; returns the console."""
    print_scores([{"name": "best", **metrics}])
    kind = "Not transductive"
    if metrics["transductive"]:
        kind = "Transductive"
    text = f"{metrics['scored']['text']} {kind}; ± is half of the 95 % interval."
    if episodes_ignored:
        text += " --episodes has nothing to choose: this model does not adapt."
    console = plain_console(soft_wrap=True)
    console.print(text)
    print_notes(console, notes_of(metrics))
    return console
