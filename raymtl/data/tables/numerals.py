"""Numbers as people write them: decimal commas, thousands separators, percent signs and units."""

import re
from functools import cache
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raymtl.data.tables.schema import Decimal, TextForm, Thousands

STYLES: tuple[tuple[Decimal, Thousands | None], ...] = (
    (".", None),
    (",", None),
    (".", ","),
    (",", "."),
    (".", " "),
    (",", " "),
    (".", "'"),
    (",", "'"),
    (".", "_"),
)
"""Decimal sign and thousands separator, in the order in which they are tried."""

_CURRENCY = r"[A-Z]{0,3}\p{Sc}|[A-Z]{3} "
_UNIT = r"[%‰°\p{L}\p{Sc}][^\d]{0,12}[23]?"
_PARTS = (
    rf"^(?P<sign>[-+]?)(?P<before>(?:{_CURRENCY})?) *(?P<inner>[-+]?)"
    r"(?P<body>[.,]?\d[\d., '_]*?)(?P<exponent>(?:[eE][-+]?\d+)?)"
    rf" *(?P<after>(?:{_UNIT})?)$"
)
_ALIKE = str.maketrans({"−": "-", "’": "'", "ʼ": "'", "\u00a0": " ", "\u202f": " ", "\u2009": " "})


class Numerals(NamedTuple):
    """The parts of texts that are like numbers, null where a text is not: all arrays [N]."""

    sign: pa.Array
    body: pa.Array
    """Digits with their separators."""
    exponent: pa.Array
    unit: pa.Array


def numerals(texts: pa.Array) -> Numerals:
    """Takes trimmed texts [N] apart."""
    for other, usual in _ALIKE.items():
        texts = pc.replace_substring(texts, chr(other), usual)
    parts = pc.extract_regex(texts, _PARTS)
    sign, before, inner, body, exponent, after = parts.flatten()
    unit = pc.utf8_trim_whitespace(pc.binary_join_element_wise(before, after, ""))
    return Numerals(pc.binary_join_element_wise(sign, inner, ""), body, exponent, unit)


def fits(parts: Numerals, form: TextForm) -> np.ndarray:
    """Which texts are numbers of this form, [N] bool."""
    good = pc.match_substring_regex(parts.body, _pattern(form.decimal, form.thousands))
    good = pc.and_(good, pc.equal(parts.unit, form.unit))
    good = pc.and_(good, pc.less(pc.utf8_length(parts.sign), 2))
    if form.thousands is not None:
        good = pc.and_(good, pc.equal(parts.exponent, ""))  # nobody groups the digits of 1.234e5
    fitting: np.ndarray = pc.fill_null(good, False).to_numpy(zero_copy_only=False)
    return fitting


def values(parts: Numerals, form: TextForm) -> pa.Array:
    """The numbers [N] float64; null where a text does not fit the form."""
    body = parts.body
    if form.thousands is not None:
        body = pc.replace_substring(body, form.thousands, "")
    body = pc.replace_substring(body, form.decimal, ".")
    written = pc.binary_join_element_wise(parts.sign, body, parts.exponent, "")
    return pc.cast(pc.if_else(pa.array(fits(parts, form)), written, None), pa.float64())


def number_forms(parts: Numerals, counts: np.ndarray) -> list[TextForm]:
    """The forms that these texts could have: every style, with the unit that most of them have.
    `counts` [N].
    """
    body = parts.body.drop_null()
    if not len(body):
        return []
    encoded = pc.dictionary_encode(parts.unit.drop_null())
    known = pc.is_valid(parts.unit).to_numpy(zero_copy_only=False)
    weights = np.bincount(encoded.indices.to_numpy(zero_copy_only=False), weights=counts[known])
    unit = encoded.dictionary[int(weights.argmax())].as_py()
    used = {mark for mark in ",. '_" if pc.any(pc.match_substring(body, mark)).as_py()}
    forms = []
    for decimal, thousands in STYLES:
        if thousands is not None and thousands not in used:
            continue
        if decimal == "," and "," not in used and thousands != ".":
            continue
        forms.append(TextForm(kind="number", decimal=decimal, thousands=thousands, unit=unit))
    return forms


@cache
def _pattern(decimal: str, thousands: str | None) -> str:
    """Of a number without sign, exponent and unit.

    Whole numbers do not begin with a zero: such are codes; nor have they more than 18 digits: such
    are names.
    """
    point = re.escape(decimal)
    patterns = [rf"(?:0|[1-9]\d{{0,17}}){point}?", rf"\d+{point}\d+", rf"{point}\d+"]
    if thousands is not None:
        mark = re.escape(thousands)
        patterns.append(rf"[1-9]\d{{0,2}}(?:{mark}\d{{3}})+(?:{point}\d*)?")
    if thousands == ",":
        patterns.append(
            rf"[1-9]\d?(?:,\d{{2}})+,\d{{3}}(?:{point}\d*)?"
        )  # as they are grouped in India
    return f"^(?:{'|'.join(patterns)})$"


def grouped(parts: Numerals, mark: str) -> np.ndarray:
    """Which numbers [N] have groups of three digits after this mark and nothing else, so that it
    could be either.
    """
    pattern = rf"^[1-9]\d{{0,2}}(?:{re.escape(mark)}\d{{3}})+$"
    good = pc.and_(pc.match_substring_regex(parts.body, pattern), pc.equal(parts.exponent, ""))
    in_groups: np.ndarray = pc.fill_null(good, False).to_numpy(zero_copy_only=False)
    return in_groups


def small_wholes(parts: Numerals) -> np.ndarray:
    """Which numbers [N] are whole and less than 1,000, so that they need no thousands separator."""
    small: np.ndarray = pc.fill_null(
        pc.match_substring_regex(parts.body, r"^(?:0|[1-9]\d{0,2})$"), False
    ).to_numpy(zero_copy_only=False)
    return small
