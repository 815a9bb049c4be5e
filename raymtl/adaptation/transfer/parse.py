"""Dotted values of the command line -> a way of transfer, validated."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from raymtl.adaptation.transfer.base import Transfer
from raymtl.schema.explain import explain
from raymtl.types import UserError


def parsed(way: type[Transfer], values: Mapping[str, Any]) -> Transfer:
    """The way with these dotted values. Raises UserError that begins with the dotted key."""
    tree: dict[str, Any] = {}
    for key, value in values.items():
        *sections, last = key.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
            if not isinstance(node, dict):
                raise UserError(
                    f"--set {key}: expected nothing set above it, got a value of '{section}'. "
                    "Remove one."
                )
        node[last] = value
    try:
        return way.model_validate(tree)
    except ValidationError as error:
        raise UserError(f"--set {explain(error, tree, way)}") from None
