"""What was found in a user's files as run folders hold it: many findings are one text of JSON."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter

from raymtl.storage import strict_json
from raymtl.types import Spec

MANY = 64
"""Findings of a kind that are listed in YAML; more of them are one text of JSON there, which is
read a hundred times as fast.
"""


_PLAIN: TypeAdapter[Any] = TypeAdapter(Any)


def packed(findings: Sequence[Any] | Mapping[str, Any]) -> Any:
    """Findings as YAML holds them."""
    plain = _PLAIN.dump_python(findings, mode="json")
    if len(findings) <= MANY:
        return plain
    return strict_json.dumps(plain)


def packed_columns(columns: Sequence[Spec]) -> Any:
    """Columns as YAML holds them: many as the names of their fields, then the values of each. What
    equals the defaults at the end of a column's fields is left away.
    """
    plain = _PLAIN.dump_python(columns, mode="json")
    if len(columns) <= MANY:
        return plain
    known = type(columns[0]).model_fields
    fields = list(plain[0])
    defaults = [known[name].get_default(call_default_factory=True) for name in fields]
    usual = _PLAIN.dump_python(defaults, mode="json", fallback=lambda _: None)
    rows = []
    for column in plain:
        row = list(column.values())
        while row[-1] == usual[len(row) - 1]:
            row.pop()
        rows.append(row)
    return strict_json.dumps([fields, *rows])


def unpacked(findings: Any) -> Any:
    """What was packed, as the fields take it."""
    if not isinstance(findings, str):
        return findings
    read = json.loads(findings)
    if isinstance(read, list) and read and isinstance(read[0], list):
        fields, *rows = read
        return [dict(zip(fields, row, strict=False)) for row in rows]
    return read
