"""From a YAML file to an Experiment, with the file and the line of what is wrong."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from raymtl.config.experiment import Experiment, parse
from raymtl.config.lines import lines_of
from raymtl.config.space import check_space
from raymtl.types import UserError


def load(path: Path, overrides: Mapping[str, Any] | None = None) -> Experiment:
    """Reads and validates a YAML file, then applies `--set` overrides.

    Raises UserError naming the file, the line and the dotted key. Every combination that the search could suggest is
    checked too.
    """
    try:
        text = path.read_text()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file. Give the path of a YAML configuration.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as text ({error}). Give the path of a YAML configuration.") from None
    try:
        lines = lines_of(yaml.compose(text, yaml.SafeLoader), path)
        tree = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{path}{line}: not valid YAML: {error.problem}. Correct the line.") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}.") from None
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        raise UserError(f"{path}: expected a mapping of keys, got {type(tree).__name__}. Write `key: value` lines.")
    overrides = overrides or {}
    # What replaces a value of the file does so before that is validated: data.path may name files that are elsewhere.
    replaced = frozenset(key for key, value in overrides.items() if _replace(tree, key.split("."), value))
    experiment = _located(lambda: parse(tree), path, lines, replaced)
    if overrides:
        try:
            experiment = experiment.override(overrides)
        except UserError as error:
            raise UserError(f"--set: {error}") from None
    _located(lambda: check_space(experiment), path, lines)
    return experiment


def _replace(tree: Any, path: Sequence[str], value: Any) -> bool:
    """Whether the plain tree has a value there, other than a mapping or the name of a member, which is now this one."""
    *parents, last = path
    for part in parents:
        tree = tree.get(part) if isinstance(tree, dict) else None
    if not isinstance(tree, dict) or last == "name" or last not in tree or isinstance(tree[last], dict):
        return False
    tree[last] = value
    return True


def _located(action: Any, path: Path, lines: Mapping[str, int], given: frozenset[str] = frozenset()) -> Any:
    """Runs `action`; puts the file, and the line of the key that a UserError begins with, before its message.

    Instead of both it says `--set` where the key is one of those `given` there.
    """
    try:
        return action()
    except UserError as error:
        key = str(error).partition(":")[0]
        if key in given:
            raise UserError(f"--set: {error}") from None
        while key and key not in lines:
            key = key.rpartition(".")[0]
        raise UserError(f"{path}{f':{lines[key]}' if key else ''}: {error}") from None
