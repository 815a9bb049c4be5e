"""Writing a trained model for other programs: `export`."""

from pathlib import Path
from typing import Annotated

import typer

import raymtl
from raymtl import run_folder
from raymtl.api.checks import check_export
from raymtl.reporting.console import plain_console
from raymtl.types import UserError

ExportedRun = Annotated[
    Path,
    typer.Argument(help="A run folder, or a model folder such as RUN/adapted/NAME."),
]
To = Annotated[
    str,
    typer.Option(
        help="torch (torch.export, .pt2) or onnx (the extra `export`); or the tracker mlflow or "
        "wandb, which gets the numbers of the whole run."
    ),
]
Output = Annotated[
    Path | None, typer.Option(help="The folder to make; RUN/exported/torch or onnx by default.")
]

TRACKERS = ("mlflow", "wandb")


def export(run: ExportedRun, to: To, output: Output = None) -> None:
    """Write the model with its preprocessing as a file that plain torch or ONNX Runtime loads, or
    give the numbers of the run to a tracker.
    """
    if to in TRACKERS:
        _give(run, to, output)
        return
    check_export(to, output)
    model_folder = run_folder.existing(run)
    folder = raymtl.export(model_folder, to, output)
    console = plain_console(highlight=False, soft_wrap=True)
    files = ", ".join(sorted(path.name for path in folder.iterdir()))
    console.print(f"{folder}: {files}", markup=False)


def _give(run: Path, to: str, output: Path | None) -> None:
    if output is not None:
        raise UserError(
            f"--output: expected none with --to {to}, which sends to where it is set up, got "
            f"{output}. Leave it away (docs/tracking.md)."
        )
    steps = raymtl.track(run_folder.existing(run), to)
    plain_console(highlight=False, soft_wrap=True).print(f"{to} got {steps} steps that it lacked")
