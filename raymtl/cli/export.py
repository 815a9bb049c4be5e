"""Writing a trained model for other programs: `export`."""

from pathlib import Path
from typing import Annotated

import typer

import raymtl
from raymtl import run_folder
from raymtl.api.checks import check_export
from raymtl.reporting.console import plain_console

ExportedRun = Annotated[
    Path,
    typer.Argument(help="A run folder, or a model folder such as RUN/adapted/NAME."),
]
To = Annotated[str, typer.Option(help="torch (torch.export, .pt2) or onnx (the extra `export`).")]
Output = Annotated[
    Path | None, typer.Option(help="The folder to make; RUN/exported/torch or onnx by default.")
]


def export(run: ExportedRun, to: To, output: Output = None) -> None:
    """Write the model with its preprocessing as a file that plain torch or ONNX Runtime loads."""
    check_export(to, output)
    model_folder = run_folder.existing(run)
    folder = raymtl.export(model_folder, to, output)
    console = plain_console(highlight=False, soft_wrap=True)
    files = ", ".join(sorted(path.name for path in folder.iterdir()))
    console.print(f"{folder}: {files}", markup=False)
