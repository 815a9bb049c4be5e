"""What users give of a named data set: the folder that holds it, and the tasks of interest."""

import os
from pathlib import Path

from raymtl.types import UserError


def each_once(names: tuple[str, ...]) -> tuple[str, ...]:
    """The tasks that were chosen of a source. Raises UserError where one was chosen twice."""
    if len(set(names)) < len(names):
        raise UserError(
            f"data.tasks: expected every task once, got {list(names)}. Remove the repetition."
        )
    return names


def data_folder(folder: str | None, holds: str, name: str) -> Path:
    """`data.folder`, or else what RAYMTL_DATA names.

    Raises UserError where neither is given, which says what it `holds` and the `name` by which it
    is fetched.
    """
    root = folder or os.environ.get("RAYMTL_DATA")
    if not root:
        raise UserError(
            f"data.folder: expected the folder that holds {holds}, got none. Give it, or set the "
            f"environment variable RAYMTL_DATA; `raymtl data fetch {name} --root FOLDER` fetches "
            "the data."
        )
    return Path(root).expanduser()
