"""The columns of a table as `data inspect` prints them: one a line, or one line for all that are
alike where there are many.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

MOST_LINES = 40
"""The most columns, columns left out, and notes that are printed; `--json` prints all."""
NAMED = 4
"""How many columns of a group are named."""

Line = tuple[str, str, str, str, str, str]
"""Names, type, role, how many numbers a column becomes, the share that is missing, and what its
numbers are normalised by.
"""


def lines(columns: Sequence[Mapping[str, Any]]) -> Iterator[Line]:
    """One line for each column, or for each type and role where there are over MOST_LINES."""
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
    text = ", ".join(names[:NAMED])
    if len(names) > NAMED:
        text += f" and {len(names) - NAMED:,} more"
    return text


def left_out(reasons: Mapping[str, str]) -> Iterator[str]:
    """A line a column that is left out; where there are many, a line a reason."""
    if len(reasons) <= MOST_LINES:
        yield from (f"left out: {name} ({why})" for name, why in reasons.items())
        return
    groups: dict[str, list[str]] = {}
    for name, why in reasons.items():
        if why.startswith("always "):
            why = "always the same"
        groups.setdefault(why, []).append(name)
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
    means = [one["mean"] for one in group]
    spreads = [one["spread"] for one in group]
    return f"means {_range(means, _short)}, spreads {_range(spreads, _short)}"


def _short(value: float) -> str:
    return f"{value:.4g}"
