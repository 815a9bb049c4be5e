"""The data: `data inspect`, `data fetch`."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from raymtl.cli.columns import MOST_LINES, left_out, lines
from raymtl.cli.options import AsJson, Config, Sets, load_config
from raymtl.reporting.console import plain_console
from raymtl.reporting.notes import notes_of, print_notes
from raymtl.storage import strict_json
from raymtl.types import UserError

if TYPE_CHECKING:
    from raymtl.data.named import Named, Part

MOST_TASKS = 12
"""The most tasks that are printed, each in three lines."""
MOST_CLASSES = 12
"""The most classes of a task whose balance is printed."""


def inspect_data(
    config: Config,
    sets: Sets = [],  # noqa: B006
    picture: Annotated[
        Path | None,
        typer.Option(
            help="Where the picture of a batch is written; OUTPUT/NAME-batch.png by default."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print the columns, tasks, splits, balance and missing values of the data; draw a batch."""
    experiment = load_config(config, sets)
    from raymtl.data.batch_picture import draw_batch
    from raymtl.data.inspection import inspect

    summary, arrays = inspect(experiment.data, experiment.seed)
    path = picture or Path(experiment.output) / f"{experiment.name}-batch.png"
    draw_batch(experiment.data, arrays, experiment.seed, path)
    summary["picture"] = str(path)
    if as_json:
        print(strict_json.dumps(summary, indent=2))
    else:
        _print_summary(summary)


def fetch_data(
    name: Annotated[str, typer.Argument(help="mnist, omniglot, cifar100, voc2007 or nyuv2.")],
    root: Annotated[
        Path | None, typer.Option(help="Folder of the data; else $RAYMTL_DATA.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Fetch data that have a name, or check a copy that is there; says first what, how much and
    from where.
    """
    from raymtl.data.download import missing
    from raymtl.data.named import known

    data_set = known().get(name)
    if data_set is None:
        raise UserError(f"NAME: expected one of {', '.join(known())}, got '{name}'.")
    folder = _data_folder(root)
    console = plain_console(highlight=False, soft_wrap=True)
    lacking = missing(data_set, folder)
    if not lacking:
        console.print(f"{name}: {_paths(data_set.parts)} in {folder}: complete and right.")
        return
    archives = [archive for part in lacking for archive in part.archives]
    for archive in archives:
        size, urls = f"{archive.num_bytes / 1e6:.2f} MB", " or ".join(archive.urls)
        console.print(f"{size:>10}  {urls} (md5 {archive.md5})", markup=False)
    console.print(f"to {folder}: {_paths(lacking)}\nlicence: {data_set.licence}", markup=False)
    if not yes:
        _confirm(sum(archive.num_bytes for archive in archives))
    _download(data_set, lacking, folder)
    console.print(f"{name} is in {folder}.", markup=False)


def _data_folder(root: Path | None) -> Path:
    if root is not None:
        return root.expanduser()
    if os.environ.get("RAYMTL_DATA"):
        return Path(os.environ["RAYMTL_DATA"]).expanduser()
    raise UserError(
        "--root: expected the folder of the data, got none. Give it, or set RAYMTL_DATA."
    )


def _paths(parts: "tuple[Part, ...] | list[Part]") -> str:
    return ", ".join(part.path for part in parts)


def _confirm(num_bytes: int) -> None:
    """Asks before a download; a command that nobody can answer needs --yes."""
    if not sys.stdin.isatty():
        raise UserError(
            "--yes: expected it where nobody can be asked, got a standard input that is no "
            "terminal."
        )
    if not typer.confirm(f"Fetch {num_bytes / 1e6:.1f} MB?"):
        raise typer.Exit(1)


def _download(data_set: "Named", parts: "list[Part]", folder: Path) -> None:
    """Fetches the parts with a progress bar for each archive."""
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TaskID,
        TextColumn,
        TimeRemainingColumn,
    )

    from raymtl.data.download import fetch

    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    with Progress(*columns, console=plain_console(stderr=True)) as progress:
        bars: dict[str, TaskID] = {}

        def report(archive: str, done: int, total: int) -> None:
            if archive not in bars:
                bars[archive] = progress.add_task(archive)
            progress.update(bars[archive], completed=done, total=total or None)

        for part in parts:
            progress.console.print(f"fetching {part.path}", markup=False)
            fetch(data_set, part, folder, report)


def _print_summary(summary: Mapping[str, Any]) -> None:
    """Prints what `inspect` found, as tables."""
    console = plain_console(highlight=False, soft_wrap=True)
    if "columns" in summary:
        _print_columns(console, summary)
    plain_console(highlight=False).print(_task_table(summary))
    tasks = summary["tasks"]
    if len(tasks) > MOST_TASKS:
        console.print(f"and {len(tasks) - MOST_TASKS:,} more tasks (--json prints all)")
    episode = summary["episode"]
    console.print(
        f"\nInputs of shape {summary['input_shape']}. The first episode ({episode['domain']}): "
        f"{max(episode['support'].values())} examples of support, {max(episode['query'].values())} "
        "of query.",
        markup=False,
    )
    notes = notes_of(summary)
    print_notes(console, notes[:MOST_LINES])
    if len(notes) > MOST_LINES:
        console.print(f"{len(notes) - MOST_LINES:,} more notes (--json prints all)")
    console.print(summary["picture"], markup=False)


def _print_columns(console: Console, summary: Mapping[str, Any]) -> None:
    """Prints the columns of a table, those that are left out, and the splits."""
    streamed = ""
    if summary["streamed"]:
        streamed = ", streamed"
    console.print(f"{summary['format']}, {summary['rows']} rows{streamed}")
    table = Table(box=None, pad_edge=False, title="\nInputs", title_justify="left")
    for heading in ("column", "type", "role"):
        table.add_column(heading, overflow="fold")
    for heading in ("numbers", "missing"):
        table.add_column(heading, overflow="fold", justify="right")
    table.add_column("normalised by, of the rows for training", overflow="fold")
    for line in lines(summary["columns"]):
        table.add_row(*line)
    plain_console(highlight=False).print(table)
    for line_left_out in left_out(summary["left_out"]):
        console.print(line_left_out)
    splits = _listed(summary["splits"])
    console.print(f"\nSplit by {summary['split_by']}: {splits} rows", markup=False)
    for key in ("groups", "classes"):
        if key in summary:
            console.print(f"{key}: {_listed(summary[key])}")


def _listed(numbers: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {number}" for name, number in numbers.items())


def _task_table(summary: Mapping[str, Any]) -> Table:
    """The first tasks, each with a row for every split."""
    table = Table(box=None, pad_edge=False, title="\nTasks", title_justify="left")
    for heading in ("task", "kind"):
        table.add_column(heading, overflow="fold")
    table.add_column("missing", overflow="fold", justify="right")
    table.add_column("split", overflow="fold")
    table.add_column("labelled", overflow="fold", justify="right")
    table.add_column("balance", overflow="fold")
    for name, task in list(summary["tasks"].items())[:MOST_TASKS]:
        if "splits" in task:
            _add_splits(table, name, task)
        else:
            labelled = summary["labelled_for_training"][name]
            table.add_row(name, task["kind"], "", "train", str(labelled), "")
    return table


def _add_splits(table: Table, name: str, task: Mapping[str, Any]) -> None:
    kind = task["kind"]
    if task["inferred"]:
        kind += " (inferred)"
    if task["yes"] is not None:
        kind += f", yes: {task['yes']}"
    first_cells = (name, kind, f"{task['missing']:.1%}")
    for split, labels in task["splits"].items():
        classes = list(labels["balance"].items())[:MOST_CLASSES]
        balance = ", ".join(f"{label} {share:.4g}" for label, share in classes)
        table.add_row(*first_cells, split, str(labels["labelled"]), balance)
        first_cells = ("", "", "")
