"""Scoring the best model of a run: `evaluate`."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.console import Console

from raymtl import run_folder
from raymtl.cli.notes import notes_of, print_notes
from raymtl.cli.options import AsJson, Data, Run, hint_at_data_option, moved_paths
from raymtl.cli.tables import print_scores
from raymtl.reporting.console import plain_console
from raymtl.storage import strict_json
from raymtl.types import UserError

if TYPE_CHECKING:
    from raymtl.data import Split

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
    if split not in ("val", "test"):
        raise UserError(f"--split: expected val or test, got '{split}'.")
    scored_split = cast("Split", split)
    folder = run_folder.existing(run) / "best"
    from raymtl.evaluation.evaluate import evaluate as score
    from raymtl.evaluation.evaluate import load_model
    from raymtl.evaluation.predictions import write_held_out

    experiment, algorithm, params = load_model(folder)
    if data:
        experiment = experiment.model_copy(
            update={"data": experiment.data.moved(moved_paths(data))}
        )
    with hint_at_data_option(data):
        arrays = experiment.data.load()
    if predictions is not None:
        rows = write_held_out(predictions, experiment.data, algorithm, params, arrays, scored_split)
    metrics = score(
        experiment, algorithm, params, arrays, split=scored_split, episodes=episodes
    ).metrics
    if as_json:
        print(strict_json.dumps(metrics, indent=2))
        return
    ignored = bool(episodes) and metrics["episodes"] is None
    console = _print_evaluation(metrics, episodes_ignored=ignored)
    if data:
        print_notes(console, experiment.data.notes(arrays))
    if predictions is not None:
        console.print(f"{predictions}: {rows} rows", highlight=False)


def _print_evaluation(metrics: Mapping[str, Any], *, episodes_ignored: bool) -> Console:
    """Prints the scores, how they were made, and the notes; returns the console."""
    print_scores([{"name": "best", "score": metrics["score"], "tasks": metrics["tasks"]}])
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
