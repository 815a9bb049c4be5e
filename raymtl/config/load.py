"""From a YAML file to an Experiment, with the file and the line of what is wrong."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from raymtl.config import yaml_text
from raymtl.config.experiment import Experiment, parse
from raymtl.config.lines import lines_of
from raymtl.config.space import check_space
from raymtl.types import UserError


def load(path: Path, overrides: Mapping[str, Any] | None = None) -> Experiment:
    """Reads and validates a YAML file, then applies `--set` overrides.

    Raises UserError naming the file, the line and the dotted key. Every combination that the search
    could suggest is checked too.
    """
    try:
        text = yaml_text.decoded(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file. Give the path of a YAML configuration.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: cannot be read as text ({error}). Give the path of a YAML configuration."
        ) from None
    try:
        node = yaml_text.compose(text)
        lines = lines_of(node, path)
        tree = yaml_text.values_of(node)
    except yaml.MarkedYAMLError as error:
        if error.problem_mark:
            line = f":{error.problem_mark.line + 1}"
        else:
            line = ""
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
    overrides = overrides or {}
    # What replaces a value of the file does so before that is validated, and all of the data before
    # they are read: data.path may name files that are elsewhere, and data.format is what a message
    # about the files may ask for.
    replaced = frozenset(
        key for key, value in overrides.items() if _replace(tree, key, value, overrides)
    )
    experiment = _located(lambda: parse(tree), path, lines, replaced)
    rest = {
        key: value
        for key, value in overrides.items()
        if key not in replaced or not key.startswith("data.")
    }
    if set(rest) - replaced:
        try:
            experiment = experiment.override(rest)
        except UserError as error:
            raise UserError(f"--set: {error}") from None
    _located(lambda: check_space(experiment), path, lines)
    return experiment


def _replace(tree: dict[str, Any], key: str, value: Any, overrides: Mapping[str, Any]) -> bool:
    """Whether the plain tree can take the value before it is validated, and does from now on.

    Of data all values can, but for those of other data than the file names; elsewhere those that
    the file has too, other than mappings and the names of members, of which `override` knows what
    they keep.
    """
    *parents, last = key.split(".")
    data = tree.get("data")
    of_data = (
        parents[:1] == ["data"]
        and isinstance(data, dict)
        and "name" in data
        and "data.name" not in overrides
    )
    node: Any = tree
    for part in parents:
        if of_data and isinstance(node, dict) and node.get(part) is None:
            node[part] = {}
        if isinstance(node, dict):
            node = node.get(part)
        else:
            node = None
    if not isinstance(node, dict) or last == "name":
        return False
    if not of_data and (last not in node or isinstance(node[last], dict)):
        return False
    node[last] = value
    return True


def _located(
    action: Any, path: Path, lines: Mapping[str, int], given: frozenset[str] = frozenset()
) -> Any:
    """Runs `action`; puts the file, and the line of the key that a UserError begins with, before
    its message.

    Instead of both it says `--set` where the key is one of those `given` there.
    """
    try:
        return action()
    except UserError as error:
        key = str(error).partition(":")[0]
        begun = {
            ".".join(parts[:depth])
            for one in given
            for parts in [one.split(".")]
            for depth in range(len(parts))
        }
        while key and key not in lines and key not in given | begun:
            key = key.rpartition(".")[0]
        if key in given or (key in begun and key not in lines):
            raise UserError(f"--set: {error}") from None
        raise UserError(f"{path}{f':{lines[key]}' if key else ''}: {error}") from None
