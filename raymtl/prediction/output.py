"""Where predictions may be written: what is wrong with a place is said before anything is read."""

import os

from raymtl.data.shards.store import Store
from raymtl.storage.places import absolute, expand
from raymtl.types import UserError

OUTPUT = "--output"
FILE = ".parquet"
"""The ending of the name of a single file; other outputs are folders."""
PLAN = "_predictions.json"
"""In a folder of predictions: the model and the rows that they are of."""
COMPLETE = "_SUCCESS"
"""In a folder of predictions, as those of Spark have it: written when all files are there."""


def is_file(output: str) -> bool:
    """Whether the output is one file."""
    return output.endswith(FILE) and "://" not in output


def checked_output(output: str) -> str:
    """The place of an output, from the root of the disk.

    Raises UserError for one that predictions cannot go to, and for one that has some.
    """
    if not output.strip():
        raise UserError(
            f"{OUTPUT}: expected a Parquet file, a folder or a URL, got none. Give one, such as "
            "predictions."
        )
    place = absolute(output, OUTPUT)
    if is_file(output):
        if os.path.lexists(expand(place, OUTPUT)):
            raise _exists(output, "a file")
        return place
    if os.path.isfile(expand(place, OUTPUT)):
        raise UserError(
            f"{OUTPUT}: expected a folder, or a file whose name ends in {FILE}, got the file "
            f"{output}. Choose another name."
        )
    names = Store(place, OUTPUT).sizes()
    if COMPLETE in names:
        raise _exists(output, "a folder")
    if PLAN not in names and any(not name.startswith(".") for name in names):
        raise UserError(
            f"{OUTPUT}: expected an empty folder, got {output}, which holds {min(names)}. Choose "
            "another folder."
        )
    return place


def _exists(output: str, what: str) -> UserError:
    return UserError(
        f"{OUTPUT}: expected {what} that does not exist yet, got {output}, which has predictions. "
        "Remove it, or choose another name."
    )
