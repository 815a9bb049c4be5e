"""ARFF, the tables of Weka:
https://waikato.github.io/weka-wiki/formats_and_processing/arff_stable/.
"""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pyarrow as pa

from raymtl.types import UserError

_NUMBERS = ("numeric", "real", "integer")
_TEXTS = ("string", "date")
_NAME = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[^\s'"{]\S*""")
# A value in quotes, or up to the next comma.
_VALUE = re.compile(r"""\s*('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[^,]*?)\s*(?:,|$)""")
_TAB_VALUE = re.compile(r"""\s*('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[^,\t]*?)[ ]*(?:,|\t|$)""")
_ENTRY = re.compile(r"""\s*(\d+)\s+('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[^,]*?)\s*(?:,|$)""")
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r"}


class _Attribute(NamedTuple):
    name: str
    number: bool
    classes: Sequence[str]
    """Of a nominal attribute; the first one is what sparse rows leave away."""


def read_arff(text: str, file: str) -> pa.Table:
    """Dense and sparse ARFF: numbers as float64, all else as texts; `?` is missing.

    Raises UserError, naming the file and the line, for what is no ARFF.
    """
    attributes: list[_Attribute] = []
    rows: list[list[str | None]] = []
    in_data = False
    for number, line in enumerate(text.splitlines(), start=1):
        stripped = line.strip()
        if not stripped or stripped.startswith("%"):
            continue
        where = f"{file}: line {number}"
        if in_data:
            rows.append(_row(line, attributes, where))
            continue
        word, _, rest = stripped.replace("\t", " ", 1).partition(" ")
        if word.lower() == "@attribute":
            attributes.append(_attribute(rest.strip(), where))
        elif word.lower() == "@data":
            in_data = True
        elif word.lower() != "@relation":
            raise UserError(
                f"{where}: expected @attribute or @data of an ARFF file, got {stripped[:40]!r}."
            )
    if not in_data or not attributes:
        raise UserError(
            f"{file}: expected an ARFF file with @attribute and @data, got something else."
        )
    if rows:
        columns = list(zip(*rows, strict=True))
    else:
        columns = [() for _ in attributes]
    arrays = [_array(one, values, file) for one, values in zip(attributes, columns, strict=True)]
    return pa.table(arrays, names=[one.name for one in attributes])


def _attribute(text: str, where: str) -> _Attribute:
    match = _NAME.match(text)
    if match is None:
        raise UserError(f"{where}: expected @attribute NAME TYPE, got {text[:40]!r}.")
    name, kind = _unquoted(match[0]), text[match.end() :].strip()
    if kind.startswith("{"):
        if not kind.endswith("}"):
            raise UserError(
                f"{where}: expected the classes of '{name}' between {{ and }}, got {kind[:40]!r}."
            )
        return _Attribute(name, False, [value or "" for value in _values(kind[1:-1], _VALUE)])
    word = kind.lower().partition(" ")[0]
    if word not in (*_NUMBERS, *_TEXTS):
        raise UserError(
            f"{where}: expected a type of '{name}', {', '.join((*_NUMBERS, *_TEXTS))} or classes "
            f"in braces, got {kind[:40]!r}."
        )
    return _Attribute(name, word in _NUMBERS, ())


def _row(line: str, attributes: Sequence[_Attribute], where: str) -> list[str | None]:
    stripped = line.strip()
    if stripped.startswith("{"):
        return _sparse(stripped.strip("{}"), attributes, where)
    values = list(_values(stripped, _VALUE))
    if len(values) != len(attributes):
        values = list(_values(stripped, _TAB_VALUE))
    if len(values) == len(attributes) + 1 and re.fullmatch(r"\s*\{.*\}\s*", values[-1] or ""):
        values.pop()  # the weight of the row
    if len(values) != len(attributes):
        raise UserError(
            f"{where}: expected {len(attributes)} values, got {len(values)}. Correct the line."
        )
    return values


def _sparse(text: str, attributes: Sequence[_Attribute], where: str) -> list[str | None]:
    """What is not written in a sparse row is 0, or the first class."""
    row: list[str | None] = ["0" if not one.classes else one.classes[0] for one in attributes]
    start = 0
    while start < len(text):
        match = _ENTRY.match(text, start)
        if match is None or int(match[1]) >= len(attributes):
            raise UserError(
                f"{where}: expected INDEX VALUE of {len(attributes)} columns, got "
                f"{text[start:][:40]!r}."
            )
        if match[2] == "?":
            row[int(match[1])] = None
        else:
            row[int(match[1])] = _unquoted(match[2])
        start = match.end()
    return row


def _values(text: str, value: re.Pattern[str]) -> Iterator[str | None]:
    start, more = 0, True
    while more:
        match = value.match(text, start)
        if match is None:  # a quote within a value
            match = re.compile(r"\s*([^,]*?)\s*(?:,|$)").match(text, start)
            assert match is not None
        yield None if match[1] == "?" else _unquoted(match[1])
        more = match.end() > match.end(1) and match[0].endswith((",", "\t"))
        start = match.end()


def _unquoted(text: str) -> str:
    if len(text) > 1 and text[0] in "'\"" and text[-1] == text[0]:
        return re.sub(r"\\(.)", lambda escape: _ESCAPED.get(escape[1], escape[1]), text[1:-1])
    return text


def _array(attribute: _Attribute, values: Sequence[str | None], file: str) -> pa.Array:
    texts = pa.array(values, pa.string())
    if attribute.classes:
        return texts.dictionary_encode()  # so that classes such as 1 and 2 stay classes
    if not attribute.number:
        return texts
    try:
        return texts.cast(pa.float64())
    except pa.ArrowInvalid:
        odd = next(value for value in values if value is not None and not _is_number(value))
        raise UserError(
            f"{file}: column '{attribute.name}': expected a number, as its @attribute says, got "
            f"{odd!r}. Correct it."
        ) from None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
