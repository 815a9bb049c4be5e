"""YAML for configurations: keys are always text, as they are written, even if YAML would read a
boolean or a date.
"""

from typing import Any

import yaml

Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The loader in C, where PyYAML was built with it: some ten times as fast."""
Dumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
_TEXT = "tag:yaml.org,2002:str"
_READ_OTHERWISE = {
    f"tag:yaml.org,2002:{kind}" for kind in ("bool", "int", "float", "null", "timestamp")
}


def decoded(content: bytes) -> str:
    """Text in UTF-8, or in UTF-16 where a byte order mark says so, whatever the locale. Raises
    UnicodeDecodeError.
    """
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16")
    return content.decode("utf-8-sig")


def compose(text: str) -> yaml.Node | None:
    """The nodes of the document. Raises yaml.YAMLError."""
    loader = Loader(text)
    try:
        node: yaml.Node | None = loader.get_single_node()
        return node
    finally:
        loader.dispose()


def values_of(node: yaml.Node | None) -> Any:
    """The plain values of a document. Keys such as `on`, `0` and `2020-01-01` stay as they are
    written.
    """
    if node is None:
        return None
    _keep_keys(node, set())
    constructor = yaml.SafeLoader("")
    try:
        return constructor.construct_document(node)
    finally:
        constructor.dispose()


def read_yaml(text: str) -> Any:
    """The plain values of a text. Raises yaml.YAMLError, or ValueError for an impossible date."""
    return values_of(compose(text))


def write_yaml(tree: Any) -> str:
    """The text that `read_yaml` reads back."""
    text: str = yaml.dump(tree, Dumper=Dumper, sort_keys=False)
    return text


def _keep_keys(node: yaml.Node, seen: set[int]) -> None:
    """Marks the keys of all mappings as texts; `seen` are the nodes that aliases come back to."""
    if id(node) in seen or isinstance(node, yaml.ScalarNode):
        return
    seen.add(id(node))
    for child in node.value:
        if isinstance(node, yaml.MappingNode):
            key, child = child
            if isinstance(key, yaml.ScalarNode) and key.tag in _READ_OTHERWISE:
                key.tag = _TEXT
        _keep_keys(child, seen)
