"""Options that several commands have, and how their values are read."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

from raymtl.schema.check import check_outline
from raymtl.storage.yaml_document import read_document
from raymtl.storage.yaml_text import read_yaml
from raymtl.types import UserError

if TYPE_CHECKING:
    from raymtl.config import Experiment

Config = Annotated[
    Path, typer.Argument(help="A YAML configuration, such as tune_configs/quickstart.yaml.")
]
Run = Annotated[Path, typer.Argument(help="A run folder, such as runs/quickstart.")]
Sets = Annotated[
    list[str],
    typer.Option("--set", help="Override a value by its dotted name: learner.inner_lr=0.05."),
]
Address = Annotated[
    str | None, typer.Option(help="A running Ray cluster; else RAY_ADDRESS, else Ray starts here.")
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Continue the newest run of this configuration.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan; start nothing.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Data = Annotated[
    list[str],
    typer.Option(
        "--data",
        help="Where the run's data are now: PATH, or KEY=PATH such as tasks.boxes.path=PATH.",
    ),
]
GONE = "where there is none."
"""The end of every message about files that are missing."""
MOVED = re.compile(r"(?P<key>(?:path|tasks|parts)\.[^=/]+)=(?P<path>.+)")
_MARK = re.compile(r"[^\w\s~\[\]{}'\"]")
"""A delimiter or separator such as `|` or `,`, which YAML would take for a sign of its own."""


def load_config(path: Path, sets: list[str]) -> "Experiment":
    """The experiment of a file, with the values of `--set`; raises UserError."""
    values = overrides(sets)
    document = read_document(path)
    # Importing the methods imports torch, which takes seconds: a mistake that is found without them
    # should not cost that.
    check_outline(document, values)
    from raymtl.config.load import load_document

    return load_document(document, values)


def moved_paths(data: list[str]) -> dict[str, str]:
    """Key below `data` -> the path that its files have moved to."""
    paths: dict[str, str] = {}
    for text in data:
        keyed = MOVED.fullmatch(text)
        if keyed:
            paths[keyed["key"]] = keyed["path"]
        else:
            paths["path"] = text
    return paths


def assignment(text: str) -> tuple[str, str]:
    """Key and value of `key=value`; raises UserError for another text."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UserError(f"--set: expected key=value, got '{text}'.")
    return key, value


def overrides(sets: list[str]) -> dict[str, Any]:
    """Dotted name -> value, read as YAML; raises UserError."""
    values: dict[str, Any] = {}
    for text in sets:
        key, value = assignment(_in_utf8(text))
        try:
            if _MARK.fullmatch(value):
                values[key] = value
            else:
                values[key] = read_yaml(value)
        except (yaml.YAMLError, ValueError):
            raise UserError(f"--set {key}: expected a YAML value, got '{value}'.") from None
    return values


def _in_utf8(word: str) -> str:
    """A word of the command line; in the locale C Python keeps its non-ASCII letters as bytes."""
    try:
        return os.fsencode(word).decode()
    except UnicodeError:
        return word


@contextmanager
def hint_at_data_option(data: list[str]) -> Iterator[None]:
    """Names --data in the error where the files of the run are missing."""
    try:
        yield
    except UserError as error:
        if data or not str(error).endswith(GONE):
            raise
        raise UserError(f"{error} Where they have moved, add --data PATH.") from None
