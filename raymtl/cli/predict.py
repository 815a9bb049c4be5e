"""Predicting new rows by the best model of a run: `predict`."""

from pathlib import Path
from typing import Annotated

import typer

import raymtl
from raymtl import run_folder
from raymtl.cli.options import Run
from raymtl.reporting.console import plain_console
from raymtl.types import UserError


def predict(
    run: Run,
    rows: Annotated[Path, typer.Argument(help="A file or folder as the run was trained on.")],
    output: Annotated[Path, typer.Option(help="The Parquet file to write.")] = Path(
        "predictions.parquet"
    ),
) -> None:
    """Predict rows of a file that the run never saw, without adapting to any."""
    table = raymtl.predict(run_folder.existing(run), rows)
    from raymtl.storage import formats

    try:
        formats.write_table(output, table)
    except OSError as error:
        raise UserError(
            f"--output: {output} cannot be written ({error.strerror}). Choose another place."
        ) from None
    console = plain_console(highlight=False, soft_wrap=True)
    console.print(f"{output}: {len(table)} rows", markup=False)
