"""The lines of a YAML file on which its keys stand."""

from collections.abc import Iterator
from pathlib import Path

import yaml

from raymtl.types import UserError

DEEPEST = 20
MOST_KEYS = 100_000


def lines_of(node: yaml.Node | None, path: Path) -> dict[str, int]:
    """Dotted key -> line in the file.

    Raises UserError for a key that occurs twice, and for aliases that contain themselves or
    multiply without end.
    """
    lines: dict[str, int] = {}
    for key, line in _keys(node, path):
        if key in lines:
            raise UserError(f"{path}:{line}: {key}: the key stands twice. Remove one of them.")
        lines[key] = line
        if len(lines) > MOST_KEYS:
            raise UserError(
                f"{path}: expected up to {MOST_KEYS:,} keys, got more. Remove aliases that "
                "multiply."
            )
    return lines


def _keys(
    node: yaml.Node | None, path: Path, before: str = "", depth: int = 0
) -> Iterator[tuple[str, int]]:
    if depth > DEEPEST:
        raise UserError(
            f"{path}: expected a few levels of keys, got over {DEEPEST}. Remove the alias that "
            "contains itself."
        )
    children: list[tuple[str, yaml.Node, yaml.Node]] = []
    if isinstance(node, yaml.MappingNode):
        children = [(str(key.value), key, value) for key, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        children = [(str(index), value, value) for index, value in enumerate(node.value)]
    for name, key, value in children:
        yield before + name, key.start_mark.line + 1
        yield from _keys(value, path, f"{before}{name}.", depth + 1)
