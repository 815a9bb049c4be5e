"""JSON that every program can read: NaN and Infinity, which Python would write and JSON does not
have, become null.
"""

import json
import math
from collections.abc import Mapping
from typing import Any


def dumps(content: Any, indent: int | None = None) -> str:
    """`content` as JSON text, in which a number that is not finite is null."""
    return json.dumps(finite_or_none(content), indent=indent, allow_nan=False)


def finite_or_none(value: Any) -> Any:
    """The same nested lists and mappings with None in place of numbers that are not finite."""
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        return None
    if isinstance(value, Mapping):
        return {key: finite_or_none(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_none(inner) for inner in value]
    return value
