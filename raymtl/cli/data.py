"""The data: `data inspect`, `data fetch`."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from raymtl.cli.columns import MOST_LINES, left_out, lines
from raymtl.cli.notes import print_notes
from raymtl.cli.options import AsJson, Config, Sets, overrides
from raymtl.config import load
from raymtl.notes import Note
from raymtl.reporting.console import plain_console
from raymtl.storage import strict_json
from raymtl.types import UserError

MOST_TASKS = 12
"""That are printed, each in three lines."""


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
    """Print what is in the data: columns, tasks, splits, balance, what is missing; draw a batch."""
    from raymtl.data.inspection import draw_batch
    from raymtl.data.inspection import inspect as look

    experiment = load(config, overrides(sets))
    told, arrays = look(experiment.data, experiment.seed)
    path = picture or Path(experiment.output) / f"{experiment.name}-batch.png"
    draw_batch(experiment.data, arrays, experiment.seed, path)
    told["picture"] = str(path)
    if as_json:
        print(strict_json.dumps(told, indent=2))
        return
    _print_data(told)


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
    from raymtl.data.download import fetch, known, missing

    named = known().get(name)
    if named is None:
        raise UserError(f"NAME: expected one of {', '.join(known())}, got '{name}'.")
    folder = root or (Path(os.environ["RAYMTL_DATA"]) if os.environ.get("RAYMTL_DATA") else None)
    if folder is None:
        raise UserError(
            "--root: expected the folder of the data, got none. Give it, or set RAYMTL_DATA."
        )
    folder = folder.expanduser()
    console = plain_console(highlight=False, soft_wrap=True)
    lacking = missing(named, folder)
    if not lacking:
        console.print(
            f"{name}: {', '.join(part.path for part in named.parts)} in {folder}: complete and "
            "right."
        )
        return
    archives = [archive for part in lacking for archive in part.archives]
    for archive in archives:
        size, where = f"{archive.num_bytes / 1e6:.2f} MB", " or ".join(archive.urls)
        console.print(f"{size:>10}  {where} (md5 {archive.md5})", markup=False)
    console.print(
        f"to {folder}: {', '.join(part.path for part in lacking)}\nlicence: {named.licence}",
        markup=False,
    )
    if not yes:
        if not sys.stdin.isatty():
            raise UserError(
                "--yes: expected it where nobody can be asked, got a standard input that is no "
                "terminal."
            )
        if not typer.confirm(
            f"Fetch {sum(archive.num_bytes for archive in archives) / 1e6:.1f} MB?"
        ):
            raise typer.Exit(1)
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    with Progress(*columns, console=plain_console(stderr=True)) as progress:
        bars: dict[str, TaskID] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in bars:
                bars[what] = progress.add_task(what)
            progress.update(bars[what], completed=done, total=total or None)

        for part in lacking:
            progress.console.print(f"fetching {part.path}", markup=False)
            fetch(named, part, folder, report)
    console.print(f"{name} is in {folder}.", markup=False)


def _print_data(told: Mapping[str, Any]) -> None:
    console = plain_console(highlight=False, soft_wrap=True)
    if "columns" in told:
        console.print(
            f"{told['format']}, {told['rows']} rows{', streamed' if told['streamed'] else ''}"
        )
        columns = Table(box=None, pad_edge=False, title="\nInputs", title_justify="left")
        for heading in (
            "column",
            "type",
            "role",
            "numbers",
            "missing",
            "normalised by, of the rows for training",
        ):
            columns.add_column(
                heading,
                overflow="fold",
                justify="right" if heading in ("numbers", "missing") else "left",
            )
        for line in lines(told["columns"]):
            columns.add_row(*line)
        plain_console(highlight=False).print(columns)
        for left in left_out(told["left_out"]):
            console.print(left)
        splits = ", ".join(f"{split} {rows}" for split, rows in told["splits"].items())
        console.print(f"\nSplit by {told['split_by']}: {splits} rows", markup=False)
        for what in ("groups", "classes"):
            if what in told:
                console.print(
                    f"{what}: {', '.join(f'{split} {n}' for split, n in told[what].items())}"
                )
    tasks = Table(box=None, pad_edge=False, title="\nTasks", title_justify="left")
    for heading in ("task", "kind", "missing", "split", "labelled", "balance"):
        tasks.add_column(
            heading,
            overflow="fold",
            justify="right" if heading in ("missing", "labelled") else "left",
        )
    for name, task in list(told["tasks"].items())[:MOST_TASKS]:
        if "splits" not in task:
            tasks.add_row(
                name, task["kind"], "", "train", str(told["labelled_for_training"][name]), ""
            )
            continue
        kind = f"{task['kind']}{' (inferred)' if task['inferred'] else ''}"
        if task["yes"] is not None:
            kind += f", yes: {task['yes']}"
        first = (name, kind, f"{task['missing']:.1%}")
        for split, about in task["splits"].items():
            balance = ", ".join(f"{k} {v:.4g}" for k, v in list(about["balance"].items())[:12])
            tasks.add_row(*first, split, str(about["labelled"]), balance)
            first = ("", "", "")
    plain_console(highlight=False).print(tasks)
    if len(told["tasks"]) > MOST_TASKS:
        console.print(f"and {len(told['tasks']) - MOST_TASKS:,} more tasks (--json prints all)")
    episode = told["episode"]
    console.print(
        f"\nInputs of shape {told['input_shape']}. The first episode ({episode['domain']}): "
        f"{max(episode['support'].values())} examples of support, {max(episode['query'].values())} "
        "of query.",
        markup=False,
    )
    notes = [Note(**note) for note in told["notes"]]
    print_notes(console, notes[:MOST_LINES])
    if len(notes) > MOST_LINES:
        console.print(f"{len(notes) - MOST_LINES:,} more notes (--json prints all)")
    console.print(told["picture"], markup=False)
