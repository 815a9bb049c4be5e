"""A YAML file of the user's: its values, and the line on which each key stands."""

from pathlib import Path
from typing import Any, NamedTuple

import yaml

from raymtl.storage import yaml_text
from raymtl.storage.yaml_lines import lines_of
from raymtl.types import UserError


class Document(NamedTuple):
    """The mapping in a YAML file."""

    path: Path
    tree: dict[str, Any]
    lines: dict[str, int]
    """Dotted key -> line in the file."""


def read_document(path: Path) -> Document:
    """Reads a file that contains a mapping, or is empty.

    Raises UserError for a file that cannot be read, is not valid YAML or contains something else.
    """
    text = _read_text(path)
    try:
        node = yaml_text.compose(text)
        lines = lines_of(node, path)
        tree = yaml_text.values_of(node)
    except yaml.MarkedYAMLError as error:
        line = ""
        if error.problem_mark:
            line = f":{error.problem_mark.line + 1}"
        raise UserError(
            f"{path}{line}: not valid YAML: {error.problem}. Correct the line."
        ) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}.") from None
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        raise UserError(
            f"{path}: expected a mapping of keys, got {type(tree).__name__}. Write `key: value` "
            "lines."
        )
    return Document(path, tree, lines)


def _read_text(path: Path) -> str:
    try:
        return yaml_text.decoded(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file. Give the path of a YAML configuration.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: cannot be read as text ({error}). Give the path of a YAML configuration."
        ) from None
