"""What pydantic found, in one sentence that begins with the dotted key."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from raymtl.config.names import dotted_names, members, nearest
from raymtl.types import Spec


def explain(error: ValidationError, tree: Mapping[str, Any], root: type[Spec]) -> str:
    """The first problem in one sentence that begins with the dotted key."""
    first = _most_telling(error, tree)
    kind, got = first["type"], first.get("input")
    key, section = _dotted(first["loc"], tree)
    context = first.get("ctx", {})
    if kind == "extra_forbidden":
        if len(first["loc"]) == 1 and key in dotted_names(root):
            section, _, last = key.partition(".")
            return f"{key}: expected nested keys, got a dotted one. Write `{section}: {{{last}: ...}}`."
        parent = key.rpartition(".")[0]
        if isinstance(section, Mapping):
            member = section.get("name")
        else:
            member = None
        belongs = [
            m
            for m, spec in members(parent, root).items()
            if key.rpartition(".")[2] in spec.model_fields
        ]
        if belongs:
            return f"{key}: {parent}.name: {member} has no such key, only {' and '.join(belongs)}. Remove it."
        siblings = members(parent, root).get(str(member))
        if siblings:
            names = [f"{parent}.{k}" for k in siblings.model_fields]
        else:
            names = dotted_names(root)
        return f"{key}: unknown key.{nearest(key, names) or nearest(key, dotted_names(root))}"
    if kind == "union_tag_invalid":
        tag, expected = (
            context["tag"],
            [name.strip(" '") for name in context["expected_tags"].split(",")],
        )
        return f"{key}.name: expected one of {', '.join(expected)}, got '{tag}'.{nearest(tag, expected)}"
    if kind == "union_tag_not_found":
        return (
            f"{key}.name: expected one of {', '.join(members(key, root))}, got none. Add the name."
        )
    if kind == "missing":
        return f"{key}: expected a value, got none. Add it."
    if kind == "literal_error":
        return f"{key}: expected {context['expected']}, got {got!r}.{nearest(str(got), _quoted(context['expected']))}"
    if kind == "string_type" and not isinstance(got, Mapping | list | tuple):
        return f"{key}: expected a text, got {got!r}. Put it in quotes, for YAML reads it as something else."
    says = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    says = says[0].lower() + says[1:]
    if says.startswith("expected"):
        says = says
    else:
        says = f"expected {says}"
    if ", got " in says:
        return f"{key}: {says}."
    return f"{key}: {says}, got {got!r}."


def _most_telling(error: ValidationError, tree: Mapping[str, Any]) -> Any:
    """The first problem; of a value that may have several forms the one within the form that it
    has.
    """
    first, *others = error.errors()
    key, _ = _dotted(first["loc"], tree)
    return next(
        (other for other in others if _dotted(other["loc"], tree)[0].startswith(f"{key}.")), first
    )


def _quoted(text: str) -> list[str]:
    return text.split("'")[1::2]


def _dotted(loc: tuple[int | str, ...], tree: Any) -> tuple[str, Any]:
    """The path as the user wrote it, without pydantic's union tags; and the mapping that holds its
    last key.
    """
    parts, node, parent = [], tree, tree
    for position, part in enumerate(loc):
        inside = (isinstance(node, Mapping) and part in node) or (
            isinstance(node, list | tuple) and isinstance(part, int) and part < len(node)
        )
        if inside:
            parts.append(str(part))
            parent, node = node, node[part]
        elif (
            position == len(loc) - 1
            and isinstance(node, Mapping)
            and isinstance(part, str)
            and "[" not in part
        ):
            parts.append(part)
            parent = node
    return ".".join(parts), parent
