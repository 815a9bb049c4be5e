"""Dotted names: the path of a field in YAML, `--set`, the search and reports. `root` is the class
at their top.
"""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeGuard, get_args, get_origin

from raymtl.schema.components import SECTIONS, depends_on_components, registered
from raymtl.types import Spec


def is_known(name: str, root: type[Spec]) -> bool:
    """Whether a configuration can have the dotted name, the user's own in it included:
    `weighting.weights.left`.
    """
    parts = name.split(".")
    patterns = {name} | {".".join([*parts[:i], "*", *parts[i + 1 :]]) for i in range(2, len(parts))}
    return bool(patterns & {*dotted_names(root), *open_names(root)})


@depends_on_components
def open_names(root: type[Spec]) -> list[str]:
    """The dotted names of keys that the user names, such as tasks, with `*` in their place."""
    names = []
    for section in root.model_fields:
        for member in members(section, root).values():
            for key, field in member.model_fields.items():
                if get_origin(field.annotation) is Mapping:
                    names.append(f"{section}.{key}.*")
                    value = get_args(field.annotation)[1]
                    if isinstance(value, type) and issubclass(value, Spec):
                        names += [f"{section}.{key}.*.{inner}" for inner in value.model_fields]
    return names


@depends_on_components
def dotted_names(root: type[Spec]) -> tuple[str, ...]:
    """Every dotted name that a configuration can have, over all members of every union."""
    names: list[str] = []
    for section, field in root.model_fields.items():
        kinds = list(members(section, root).values())
        if not kinds and isinstance(field.annotation, type) and issubclass(field.annotation, Spec):
            kinds = [field.annotation]
        names.append(section)
        for member in kinds:
            for key, inner in member.model_fields.items():
                names.append(f"{section}.{key}")
                specs = [
                    a
                    for a in (inner.annotation, *get_args(inner.annotation))
                    if isinstance(a, type)
                ]
                names += [
                    f"{section}.{key}.{k}"
                    for s in specs
                    if issubclass(s, Spec)
                    for k in s.model_fields
                ]
    return tuple(dict.fromkeys(names))


def members(section: str, root: type[Spec]) -> dict[str, type[Spec]]:
    """The union of a section by `name`, with the components of the user's own; empty for a section
    that is none.
    """
    *path, last = section.split(".")
    for key in path:
        inner = root.model_fields.get(key)
        if inner is None or not _is_spec(inner.annotation):
            return {}
        root = inner.annotation
    field = root.model_fields.get(last)
    if field is None:
        return {}
    kinds = [field.annotation, *get_args(field.annotation)]
    specs = [
        kind
        for kind in kinds
        if isinstance(kind, type) and issubclass(kind, Spec) and "name" in kind.model_fields
    ]
    named = {kind.model_fields["name"].default: kind for kind in specs}
    if named and section in SECTIONS:
        named |= registered(section)
    return named


def _is_spec(annotation: Any) -> TypeGuard[type[Spec]]:
    return isinstance(annotation, type) and issubclass(annotation, Spec)


def as_values(tree: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and value of everything in a plain tree."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from as_values(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value


def nearest(key: str, names: Iterable[str]) -> str:
    """The end of a sentence that says which of the names may have been meant; nothing where none is
    near.
    """
    names = list(names)
    close = difflib.get_close_matches(key, names, n=1, cutoff=0.6)
    if not close:
        close = difflib.get_close_matches(key.rpartition(".")[2], names, n=1, cutoff=0.6)
        close = (
            close
            or [name for name in names if name.rpartition(".")[2] == key.rpartition(".")[2]][:1]
        )
    if close:
        return f" Did you mean {close[0]}?"
    return ""
