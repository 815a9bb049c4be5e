"""The commands. Each validates everything that the user gave before anything is started."""

import sys
from typing import Annotated

import typer

from raymtl.cli.adapt import adapt
from raymtl.cli.cluster import check_file, doctor, render_file
from raymtl.cli.data import fetch_data, inspect_data
from raymtl.cli.embed import embed_data
from raymtl.cli.evaluate import evaluate
from raymtl.cli.export import export
from raymtl.cli.predict import predict
from raymtl.cli.prepare import prepare_data
from raymtl.cli.run import train, tune
from raymtl.cli.serve import serve
from raymtl.cli.show import methods, report, schema, trials
from raymtl.reporting.console import log_to_stderr, print_any_letter
from raymtl.schema.component_modules import import_components
from raymtl.storage.fence import Superseded
from raymtl.storage.redaction import redacted
from raymtl.types import DivergedError, UserError

app = typer.Typer(
    name="raymtl",
    help="Learn many tasks together, learn how to learn the next one, and search how.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

data_app = typer.Typer(
    help="Look at the data of a configuration, prepare them, or fetch data that have a name.",
    no_args_is_help=True,
    add_completion=False,
)
cluster_app = typer.Typer(
    help="Write and check the files that start a cluster.",
    no_args_is_help=True,
    add_completion=False,
)
for on_run in (tune, train, evaluate, adapt, predict, serve, export):
    app.command()(on_run)
for command in (trials, methods, schema, report, doctor):
    app.command()(command)
data_app.command("inspect")(inspect_data)
data_app.command("fetch")(fetch_data)
data_app.command("prepare")(prepare_data)
data_app.command("embed")(embed_data)
cluster_app.command("render")(render_file)
cluster_app.command("check")(check_file)
app.add_typer(data_app, name="data")
app.add_typer(cluster_app, name="cluster")


@app.callback()
def import_modules(
    modules: Annotated[
        list[str],
        typer.Option(
            "--import",
            metavar="MODULE",
            help="A module of components of your own (docs/components.md); may be given again.",
        ),
    ] = [],  # noqa: B006
) -> None:
    """Learn many tasks together, learn how to learn the next one, and search how."""
    for name in modules:
        import_components(name)


def main() -> None:
    """Runs the command line; a user's mistake is one sentence and exit status 2."""
    print_any_letter()
    log_to_stderr()
    try:
        app()
    except (UserError, DivergedError, Superseded) as error:
        print(f"raymtl: {redacted(str(error))}", file=sys.stderr)
        sys.exit(2)
    except PermissionError as error:
        if error.filename is None:
            raise
        print(
            f"raymtl: {error.filename}: {error.strerror}. Give this user access to it.",
            file=sys.stderr,
        )
        sys.exit(2)
