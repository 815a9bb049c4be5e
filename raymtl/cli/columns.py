"""The columns of a table as `data inspect` prints them: each, or where there are many all that are
alike in a line.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

MOST_LINES = 40
"""Of columns, of those that are left out, of tasks and of notes; `--json` prints all."""
NAMED = 4
"""Columns of a group that are named."""

Line = tuple[str, str, str, str, str, str]
"""Names, type, role, how many numbers a column becomes, what is missing, and what numbers are
normalised by.
"""


def lines(columns: Sequence[Mapping[str, Any]]) -> Iterator[Line]:
    """A line a column; where they are more than MOST_LINES a line for those of the same type and
    role.
    """
    if len(columns) <= MOST_LINES:
        for one in columns:
            missing = f"{one['missing']:.1%}"
            yield (
                one["column"],
                one["type"],
                one["role"],
                str(one["numbers"]),
                missing,
                one["normalised_by"],
            )
        return
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for one in columns:
        groups.setdefault((one["type"], one["role"]), []).append(one)
    for (kind, role), group in groups.items():
        numbers = _range([one["numbers"] for one in group], str)
        missing = _range([one["missing"] for one in group], lambda share: f"{share:.1%}")
        yield (
            named([one["column"] for one in group]),
            kind,
            role,
            numbers,
            missing,
            _normalised(group),
        )


def named(names: Sequence[str]) -> str:
    """The first of the names, and how many more there are."""
    if len(names) > NAMED:
        more = f" and {len(names) - NAMED:,} more"
    else:
        more = ""
    return ", ".join(names[:NAMED]) + more


def left_out(reasons: Mapping[str, str]) -> Iterator[str]:
    """A line a column that is left out; where there are many, a line a reason."""
    if len(reasons) <= MOST_LINES:
        yield from (f"left out: {name} ({why})" for name, why in reasons.items())
        return
    groups: dict[str, list[str]] = {}
    for name, why in reasons.items():
        groups.setdefault("always the same" if why.startswith("always ") else why, []).append(name)
    for number, (why, names) in enumerate(groups.items()):
        if number == MOST_LINES:
            yield f"left out: {len(groups) - MOST_LINES:,} more reasons (--json prints all)"
            return
        yield f"left out: {named(names)} ({why})"


def _range(values: Sequence[Any], text: Callable[[Any], str]) -> str:
    least, most = text(min(values)), text(max(values))
    if least == most:
        return least
    return f"{least} to {most}"


def _normalised(group: Sequence[Mapping[str, Any]]) -> str:
    """The range of means and spreads, or what is said of the first of the group."""
    if len(group) == 1 or group[0]["role"] not in ("number", "vector"):
        return str(group[0]["normalised_by"])
    means, spreads = ([one[key] for one in group] for key in ("mean", "spread"))
    return f"means {_range(means, _short)}, spreads {_range(spreads, _short)}"


def _short(value: float) -> str:
    return f"{value:.4g}"
