"""Reads YAML documents as data, and walks what is in them."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from raymtl.storage.yaml_lines import lines_of
from raymtl.types import UserError

PLACEHOLDER = re.compile(r"REPLACE_WITH_([A-Z_]*[A-Z])")


def read(text: str, path: Path) -> list[dict[str, Any]]:
    """The documents, each a mapping. Raises UserError that names `path`."""
    try:
        for node in yaml.compose_all(text, yaml.SafeLoader):
            lines_of(node, path)
        documents = [document for document in yaml.safe_load_all(text) if document is not None]
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: not valid YAML: {' '.join(str(error).split())}. Correct it."
        ) from None
    for document in documents:
        if not isinstance(document, dict):
            raise UserError(
                f"{path}: expected a mapping of keys, got {type(document).__name__}. Write `key: "
                "value`."
            )
    if not documents:
        raise UserError(
            f"{path}: expected a cluster file, got an empty one. Give one such as cluster.yaml."
        )
    return documents


def leaves(tree: Any, before: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of everything that is no mapping or list."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from leaves(value, f"{before}{key}.")
    elif isinstance(tree, list):
        for index, value in enumerate(tree):
            yield from leaves(value, f"{before}{index}.")
    else:
        yield before.rstrip("."), tree


def placeholders(tree: Any) -> Iterator[str]:
    """A sentence for each value that has still to be given."""
    for key, value in leaves(tree):
        left = PLACEHOLDER.search(str(value))
        if left:
            yield (
                f"{key}: expected your own value, got {left[0]}; fill it in, or use `raymtl "
                "cluster render`."
            )
