"""Explains an error of pydantic in one sentence that begins with the dotted key."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from raymtl.schema.components import KIND, OWN, SECTIONS, registered, registered_kinds
from raymtl.schema.names import dotted_names, members, nearest
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
            nested = f"{section}: {{{last}: ...}}"
            return f"{key}: expected nested keys, got a dotted one. Write `{nested}`."
        return _explain_unknown_key(key, section, root)
    if kind == "union_tag_invalid":
        tag = context["tag"]
        expected = [name.strip(" '") for name in context["expected_tags"].split(",")]
        hint = nearest(tag, expected)
        if key in SECTIONS:
            expected += registered(key)
            hint = nearest(tag, expected) or f" {OWN}"
        return f"{key}.name: expected one of {', '.join(expected)}, got '{tag}'.{hint}"
    if kind == "union_tag_not_found":
        names = ", ".join(members(key, root))
        return f"{key}.name: expected one of {names}, got none. Add the name."
    if kind == "missing":
        return f"{key}: expected a value, got none. Add it."
    if kind == "literal_error":
        expected = _quoted(context["expected"])
        hint = nearest(str(got), expected)
        if key.startswith("data.tasks.") and key.endswith(f".{KIND}"):
            hint = nearest(str(got), [*expected, *registered_kinds()]) or f" {OWN}"
        return f"{key}: expected {context['expected']}, got {got!r}.{hint}"
    if kind == "string_type" and not isinstance(got, Mapping | list | tuple):
        return (
            f"{key}: expected a text, got {got!r}. Put it in quotes, for YAML reads it as "
            "something else."
        )
    return _explain_message(key, first["msg"], got)


def _explain_unknown_key(key: str, section: Any, root: type[Spec]) -> str:
    """The sentence on a key that the section does not have, with the key that was meant."""
    parent, _, last = key.rpartition(".")
    member = None
    if isinstance(section, Mapping):
        member = section.get("name")
    known = members(parent, root)
    owners = [name for name, spec in known.items() if last in spec.model_fields]
    if owners:
        return (
            f"{key}: {parent}.name: {member} has no such key, only {' and '.join(owners)}. Remove "
            "it."
        )
    names = dotted_names(root)
    siblings = known.get(str(member))
    hint = ""
    if siblings:
        hint = nearest(key, [f"{parent}.{sibling}" for sibling in siblings.model_fields])
    return f"{key}: unknown key.{hint or nearest(key, names)}"


def _explain_message(key: str, message: str, got: Any) -> str:
    """The sentence on what pydantic, or a check of ours, says in words."""
    message = message.removeprefix("Value error, ").removeprefix("Input should be ")
    message = message[0].lower() + message[1:]
    if not message.startswith("expected"):
        message = f"expected {message}"
    if ", got " in message:
        return f"{key}: {message}."
    return f"{key}: {message}, got {got!r}."


def _most_telling(error: ValidationError, tree: Mapping[str, Any]) -> Any:
    """The first problem; of a value that may have several forms the one within the form that it
    has.
    """
    first, *others = error.errors()
    for other in others:  # a form can have values of several forms itself
        if _key(other, tree).startswith(f"{_key(first, tree)}."):
            first = other
    return first


def _key(problem: Any, tree: Mapping[str, Any]) -> str:
    """The dotted key of a problem."""
    key, _ = _dotted(problem["loc"], tree)
    return key


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
