"""The cluster: `doctor`, `cluster render`, `cluster check`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from raymtl.cli.options import Address, AsJson, Sets, assignment, load_config
from raymtl.reporting.console import plain_console
from raymtl.storage import strict_json
from raymtl.types import UserError

if TYPE_CHECKING:
    from raymtl.cluster.doctor.check import Check
    from raymtl.cluster.files.templates import Question

MARKS = {
    True: Text("ok", "green"),
    None: Text("look", "yellow"),
    False: Text("fails", "red"),
}


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
    if sets and config is None:
        raise UserError(
            f"--set: expected --config, whose values it sets, got {sets[0]} alone. Add --config."
        )
    experiment = None
    if config is not None:
        experiment = load_config(config, sets)
    from raymtl.cluster.doctor.doctor import doctor as examine

    checks = examine(output, address, experiment)
    if as_json:
        print(strict_json.dumps([check._asdict() for check in checks], indent=2))
    else:
        _print_checks(checks)
    if any(check.ok is False for check in checks):
        raise typer.Exit(1)


def _print_checks(checks: "list[Check]") -> None:
    table = Table(box=None, pad_edge=False)
    for column in ("", "check", "found", "what to do"):
        table.add_column(column, overflow="fold")
    for check in checks:
        advice = check.advice
        if check.ok:
            advice = ""
        table.add_row(MARKS[check.ok], check.name, check.found, advice)
    plain_console().print(table)


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
    from raymtl.cluster.files.check import check_text
    from raymtl.cluster.files.render import render

    if output is not None and output.exists():
        raise UserError(
            f"--output: expected a new file, got {output}, which exists. Choose another, or move "
            "it away."
        )
    values = dict(assignment(text) for text in sets)
    prompt = None
    if sys.stdin.isatty():
        prompt = ask
    text = render(target, values, prompt, Path.cwd())
    _exit_on(check_text(text, output or Path(target), Path.cwd()))
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
    """List the mistakes in a cluster file, including those that Ray finds, without asking a cloud.
    Exit 2 where something is.
    """
    from raymtl.cluster.files.check import check_text

    try:
        text = file.read_text(encoding="utf8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{file}: cannot be read ({error}). Give a cluster file such as cluster.yaml."
        ) from None
    _exit_on(check_text(text, file, Path.cwd()))
    print(f"{file}: nothing found")


def ask(name: str, question: "Question") -> str:
    """Asks for a value until it is valid."""
    from raymtl.cluster.files.render import why_invalid

    while True:
        value: str = typer.prompt(f"{question.ask} ({name})", err=True)
        reason = why_invalid(question, value)
        if not reason:
            return value
        print(reason, file=sys.stderr)


def _exit_on(problems: list[str]) -> None:
    """Prints a line for each problem of a file, and exits with status 2 if there is one."""
    for sentence in problems:
        print(f"raymtl: {sentence}", file=sys.stderr)
    if problems:
        raise typer.Exit(2)
