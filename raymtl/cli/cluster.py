"""The cluster: `doctor`, `cluster render`, `cluster check`."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from raymtl.cli.options import Address, AsJson, Sets, assignment, overrides
from raymtl.config import load
from raymtl.reporting.console import plain_console
from raymtl.storage import strict_json
from raymtl.types import UserError


def doctor(
    output: Annotated[Path, typer.Option(help="Where runs would be written.")] = Path("runs"),
    address: Address = None,
    config: Annotated[
        Path | None, typer.Option(help="A configuration: is there room for what it plans?")
    ] = None,
    sets: Sets = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """Check what a run needs: versions, cores, memory, disk, and the cluster if there is one. Exit
    1 on a failure.
    """
    from raymtl.cluster import doctor as examine

    if sets and config is None:
        raise UserError(
            f"--set: expected --config, whose values it sets, got {sets[0]} alone. Add --config."
        )
    checks = examine(output, address, load(config, overrides(sets)) if config else None)
    if as_json:
        print(strict_json.dumps([check._asdict() for check in checks], indent=2))
    else:
        table = Table(box=None, pad_edge=False)
        for column in ("", "check", "found", "what to do"):
            table.add_column(column, overflow="fold")
        marks = {
            True: Text("ok", "green"),
            None: Text("look", "yellow"),
            False: Text("fails", "red"),
        }
        for check in checks:
            table.add_row(
                marks[check.ok], check.name, check.found, "" if check.ok else check.advice
            )
        plain_console().print(table)
    if any(check.ok is False for check in checks):
        raise typer.Exit(1)


def render_file(
    target: Annotated[str, typer.Argument(help="aws, gcp, local or kuberay.")],
    sets: Annotated[
        list[str],
        typer.Option("--set", help="An answer, such as region=eu-central-1; else it asks."),
    ] = [],  # noqa: B006
    output: Annotated[
        Path | None, typer.Option(help="Where the file is written; else it is printed.")
    ] = None,
) -> None:
    """Fill a shipped cluster file with your own values, keep its comments, and check it without
    asking any cloud.
    """
    from raymtl.cluster.files.check import audit
    from raymtl.cluster.files.render import render

    if output is not None and output.exists():
        raise UserError(
            f"--output: expected a new file, got {output}, which exists. Choose another, or move "
            "it away."
        )
    given = dict(assignment(text) for text in sets)
    text = render(target, given, ask if sys.stdin.isatty() else None, Path.cwd())
    _refuse(audit(text, output or Path(target), Path.cwd()))
    if output is None:
        print(text, end="")
        return
    try:
        output.write_text(text, encoding="utf8")
    except OSError as error:
        raise UserError(
            f"--output: {output} cannot be written ({error.strerror}). Choose another."
        ) from None
    print(output)


def check_file(
    file: Annotated[Path, typer.Argument(help="A file for `ray up`, or a RayJob for KubeRay.")],
) -> None:
    """Say what is wrong with a cluster file, Ray's own checks included; asks no cloud. Exit 2 where
    something is.
    """
    from raymtl.cluster.files.check import audit

    try:
        text = file.read_text(encoding="utf8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{file}: cannot be read ({error}). Give a cluster file such as cluster.yaml."
        ) from None
    _refuse(audit(text, file, Path.cwd()))
    print(f"{file}: nothing found")


def ask(name: str, question: Any) -> str:
    """Asks until the answer will do."""
    from raymtl.cluster.files.render import refused

    while True:
        answer: str = typer.prompt(f"{question.ask} ({name})", err=True)
        why = refused(question, answer)
        if not why:
            return answer
        print(why, file=sys.stderr)


def _refuse(found: list[str]) -> None:
    """Ends with status 2, a line for each thing that was found."""
    for sentence in found:
        print(f"raymtl: {sentence}", file=sys.stderr)
    if found:
        raise typer.Exit(2)
