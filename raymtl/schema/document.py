"""From a YAML file and `--set` to a validated configuration, with the file and the line of what is
wrong.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from raymtl.schema.base import Config, parse
from raymtl.storage.yaml_document import Document
from raymtl.types import UserError

Result = TypeVar("Result")


def parse_document(root: type[Config], document: Document, overrides: Mapping[str, Any]) -> Config:
    """Validates what a file holds, with the overrides in it, and resolves its data. Raises
    UserError.
    """
    # An override replaces a value of the file before that value is validated. It replaces values of
    # the data before the data are read: data.path may name files that are elsewhere, and a message
    # about the files may ask for data.format.
    tree = copy.deepcopy(document.tree)
    replaced = frozenset(
        key for key, value in overrides.items() if _replace(tree, key, value, overrides)
    )
    config = located(lambda: parse(root, tree).resolve(), document, replaced)
    rest = {
        key: value
        for key, value in overrides.items()
        if key not in replaced or not key.startswith("data.")
    }
    if set(rest) - replaced:
        try:
            config = config.override(rest)
        except UserError as error:
            raise UserError(f"--set: {error}") from None
    return config


def _replace(tree: dict[str, Any], key: str, value: Any, overrides: Mapping[str, Any]) -> bool:
    """Puts the value into the plain tree if the tree can take it before it is validated; returns
    whether it did.

    A value of the data can always be replaced, unless `data.name` changes too. Elsewhere only a
    value that the file holds can be replaced, and neither a mapping nor the name of a member:
    `override` knows which of a member's values stay when its name changes.
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
    for parent in parents:
        if not isinstance(node, dict):
            return False
        if of_data and node.get(parent) is None:
            node[parent] = {}
        node = node.get(parent)
    if not isinstance(node, dict) or last == "name":
        return False
    if not of_data and (last not in node or isinstance(node[last], dict)):
        return False
    node[last] = value
    return True


def located(
    action: Callable[[], Result], document: Document, given: frozenset[str] = frozenset()
) -> Result:
    """Runs `action` and puts the file and the line of the key before the message of its UserError.

    Where the key is one of those `given` on the command line, it puts `--set` there instead.
    """
    try:
        return action()
    except UserError as error:
        lines = document.lines
        begun = {start for key in given for start in _starts(key)}
        key = str(error).partition(":")[0]
        while key and key not in lines and key not in given | begun:
            key = key.rpartition(".")[0]
        if key in given or (key in begun and key not in lines):
            raise UserError(f"--set: {error}") from None
        place = str(document.path)
        if key:
            place = f"{place}:{lines[key]}"
        raise UserError(f"{place}: {error}") from None


def _starts(key: str) -> list[str]:
    """What stands before each dot of a dotted key, and before its first word."""
    parts = key.split(".")
    return [".".join(parts[:depth]) for depth in range(len(parts))]
