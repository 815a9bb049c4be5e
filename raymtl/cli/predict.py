"""Predicting new rows by the best model of a run: `predict`."""

from typing import Annotated

import typer

import raymtl
from raymtl import run_folder
from raymtl.cli.options import Address, Run
from raymtl.reporting.console import plain_console
from raymtl.reporting.notes import print_notes

Output = Annotated[
    str,
    typer.Option(
        help="A file NAME.parquet; else a folder or a URL, which gets a file for each part."
    ),
]


def predict(
    run: Run,
    rows: Annotated[str, typer.Argument(help="A file, folder or URL as the run was trained on.")],
    output: Output = "predictions.parquet",
    address: Address = None,
) -> None:
    """Predict rows of a file that the run never saw, without adapting to any; of any number."""
    from raymtl.prediction.output import checked_output

    folder = run_folder.existing(run)
    checked_output(output)
    written = raymtl.predict(folder, rows, output=output, address=address)
    console = plain_console(highlight=False, soft_wrap=True)
    print_notes(console, written.notes)
    files = ""
    if written.num_files > 1:
        files = f" in {written.num_files} files"
    console.print(f"{output}: {written.num_rows} rows{files}", markup=False)
