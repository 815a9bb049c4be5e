"""Dotted values of the command line -> a way of transfer, validated."""

import difflib
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from raymtl.adaptation.transfer.base import Transfer
from raymtl.types import Spec, UserError


def parsed(way: type[Transfer], values: Mapping[str, Any]) -> Transfer:
    """The way with these dotted values. Raises UserError that begins with the dotted key."""
    tree: dict[str, Any] = {}
    for key, value in values.items():
        *path, last = key.split(".")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                raise UserError(
                    f"--set {key}: expected nothing set above it, got a value of '{part}'. Remove "
                    "one."
                )
        node[last] = value
    try:
        return way.model_validate(tree)
    except ValidationError as error:
        raise UserError(f"--set {_explain(error, tree, way)}") from None


def _explain(error: ValidationError, tree: Mapping[str, Any], way: type[Transfer]) -> str:
    """The first problem in one sentence that begins with the dotted key."""
    first = error.errors()[0]
    parts: list[str] = []
    node: Any = tree
    for position, part in enumerate(first["loc"]):
        # pydantic puts the name of a union's member into the path, where the user has no key.
        if isinstance(node, Mapping) and part not in node and position < len(first["loc"]) - 1:
            continue
        parts.append(str(part))
        if isinstance(node, Mapping) and part in node:
            node = node[part]
        else:
            node = None
    key = ".".join(parts)
    if first["type"] == "extra_forbidden":
        known = keys(way)
        close = difflib.get_close_matches(key, known, n=1)
        close = close or [k for k in known if k.rpartition(".")[2] == key.rpartition(".")[2]][:1]
        return f"{key}: unknown key of this way.{f' Did you mean {close[0]}?' if close else ''}"
    if first["type"] == "union_tag_not_found":
        return f"{key}.name: expected a name, got none. Add it."
    if first["type"] == "union_tag_invalid":
        return f"{key}.name: expected one of {first['ctx']['expected_tags']}, got '{first['ctx']['tag']}'."
    says = first["msg"].removeprefix("Input should be ")
    return f"{key}: expected {says[0].lower() + says[1:]}, got {first.get('input')!r}."


def keys(way: type[Spec]) -> list[str]:
    """Dotted keys of a way, those of its sections included."""
    found = []
    for name, field in way.model_fields.items():
        inner = field.annotation
        section = isinstance(inner, type) and issubclass(inner, Spec)
        found += [f"{name}.{key}" for key in keys(inner)] if section else [name]  # type: ignore[arg-type]
    return found
