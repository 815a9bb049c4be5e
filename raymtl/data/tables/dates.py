"""Dates as people write them: day, month and year in any order, with a time or without."""

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raymtl.data.tables.schema import DateOrder

ORDERS: tuple[DateOrder, ...] = ("ymd", "dmy", "mdy")
DAY_US, SECOND_US = 86_400_000_000, 1_000_000
PIVOT = 69  # two digits from here on are a year of the last century, as POSIX has it

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_NAME = (
    "(?P<name>(?i:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|"
    r"aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)\.?)"
)
_CLOCK = (
    r"(?P<hour>\d{1,2}):(?P<minute>\d{2})(?::(?P<second>\d{2})(?P<part>(?:[.,]\d+)?))?"
    r" *(?P<half>(?i:[ap]\.?m\.?)?)"
)
_TIME = rf"(?:[ T,]+{_CLOCK})?"
_NUMERIC = (
    r"^(?P<a>\d{1,4})(?P<s>[./-]) ?(?P<b>\d{1,2})(?P<t>[./-]) ?(?P<c>\d{1,2}|\d{4})"
    rf"{_TIME}$"
)
_COMPACT = r"^(?P<a>\d{4})(?P<b>\d{2})(?P<c>\d{2})$"
_YEAR_MONTH = r"^(?P<a>\d{4})[/-](?P<b>\d{1,2})$"
_MONTH_YEAR = r"^(?P<b>\d{1,2})[/-](?P<a>\d{4})$"
_NAMED = (
    rf"^(?P<c>\d{{1,2}})(?:st|nd|rd|th|\.)?[ -]*{_NAME}[ ,-]*(?P<a>\d{{4}}|\d{{2}}){_TIME}$",
    rf"^{_NAME}[ -]*(?P<c>\d{{1,2}})(?:st|nd|rd|th)?[ ,-]+(?P<a>\d{{4}}){_TIME}$",
)


class Dates(NamedTuple):
    """Microseconds since 1970 [N] int64; which texts are dates, and which have a time, [N] bool."""

    micros: np.ndarray
    known: np.ndarray
    timed: np.ndarray


def dates(texts: pa.Array, order: DateOrder) -> Dates:
    """Reads trimmed texts [N]; names of months are English."""
    size = len(texts)
    merged = Dates(np.zeros(size, np.int64), np.zeros(size, bool), np.zeros(size, bool))
    for read in (_numeric, _year_and_month, _named):
        other = read(texts, order)
        new = other.known & ~merged.known
        merged = Dates(
            np.where(new, other.micros, merged.micros),
            merged.known | new,
            merged.timed | (new & other.timed),
        )
        if merged.known.all():
            break
    return merged


def compact(texts: pa.Array) -> Dates:
    """Reads dates of eight digits, such as 20241231."""
    parts = pc.extract_regex(texts, _COMPACT)
    year, month, day = (_whole(parts, name) for name in "abc")
    good = (year >= 1800) & (year < 2200)
    return _made(
        year,
        month,
        day,
        _valid(parts) & good,
        np.zeros(len(texts), np.int64),
        np.zeros(len(texts), bool),
    )


def times(texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Microseconds since midnight [N] int64, and which texts are times of day, [N] bool."""
    micros, timed, good = _time(pc.extract_regex(texts, f"^{_CLOCK}$"))
    return micros, timed & good


def _numeric(texts: pa.Array, order: DateOrder) -> Dates:
    parts = pc.extract_regex(texts, _NUMERIC)
    first, middle, last = (_whole(parts, name) for name in "abc")
    digits = [
        pc.fill_null(pc.utf8_length(_field(parts, name)), 0).to_numpy(zero_copy_only=False)
        for name in "ac"
    ]
    same = pc.fill_null(pc.equal(_field(parts, "s"), _field(parts, "t")), False).to_numpy(
        zero_copy_only=False
    )
    if order == "ymd":
        good, year, month, day = digits[0] == 4, first, middle, last
        good &= digits[1] < 4
    else:
        good = (digits[0] < 3) & (digits[1] > 1)
        year = np.where(digits[1] == 2, _century(last), last)
        month, day = first, middle
        if order == "dmy":
            month, day = middle, first
    micros, timed, right = _time(parts)
    return _made(year, month, day, _valid(parts) & same & good & right, micros, timed)


def _year_and_month(texts: pa.Array, order: DateOrder) -> Dates:
    size = len(texts)
    nothing, ones = np.zeros(size, np.int64), np.ones(size, np.int64)
    first, last = (pc.extract_regex(texts, pattern) for pattern in (_YEAR_MONTH, _MONTH_YEAR))
    known = _valid(first)
    year, month = (np.where(known, _whole(first, name), _whole(last, name)) for name in "ab")
    return _made(year, month, ones, known | _valid(last), nothing, np.zeros(size, bool))


def _named(texts: pa.Array, order: DateOrder) -> Dates:
    size = len(texts)
    merged = Dates(np.zeros(size, np.int64), np.zeros(size, bool), np.zeros(size, bool))
    for pattern in _NAMED:
        parts = pc.extract_regex(texts, pattern)
        name = pc.utf8_lower(pc.utf8_slice_codeunits(_field(parts, "name"), 0, 3))
        month = 1 + pc.fill_null(pc.index_in(name, value_set=pa.array(_MONTHS)), 0).to_numpy(
            zero_copy_only=False
        )
        year = _whole(parts, "a")
        short = pc.fill_null(pc.equal(pc.utf8_length(_field(parts, "a")), 2), False).to_numpy(
            zero_copy_only=False
        )
        micros, timed, good = _time(parts)
        matched = _made(
            np.where(short, _century(year), year),
            month,
            _whole(parts, "c"),
            _valid(parts) & good,
            micros,
            timed,
        )
        merged = Dates(
            np.where(matched.known, matched.micros, merged.micros),
            merged.known | matched.known,
            merged.timed | matched.timed,
        )
    return merged


def _time(parts: pa.Array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Microseconds since midnight, which texts have a time, and which of all are right, each
    [N].
    """
    hour, minute, second = (_whole(parts, name) for name in ("hour", "minute", "second"))
    timed = pc.fill_null(pc.greater(pc.utf8_length(_field(parts, "hour")), 0), False).to_numpy(
        zero_copy_only=False
    )
    half = pc.utf8_lower(pc.utf8_slice_codeunits(_field(parts, "half"), 0, 1))
    before, after = (
        pc.fill_null(pc.equal(half, letter), False).to_numpy(zero_copy_only=False)
        for letter in ("a", "p")
    )
    twelve = before | after
    right = (minute < 60) & (second < 61) & np.where(twelve, (hour >= 1) & (hour <= 12), hour < 24)
    hour = np.where(twelve, hour % 12 + 12 * after, hour)
    fraction = pc.replace_substring(_field(parts, "part"), ",", ".")
    written = pc.binary_join_element_wise("0", pc.fill_null(fraction, ""), "")
    micros = np.round(
        pc.cast(written, pa.float64()).to_numpy(zero_copy_only=False) * SECOND_US
    ).astype(np.int64)
    return ((hour * 60 + minute) * 60 + second) * SECOND_US + micros, timed, ~timed | right


def _made(
    year: np.ndarray,
    month: np.ndarray,
    day: np.ndarray,
    known: np.ndarray,
    micros: np.ndarray,
    timed: np.ndarray,
) -> Dates:
    """Dates of these parts, where there are such days."""
    good = known & (month >= 1) & (month <= 12) & (day >= 1)
    months = ((year - 1970) * 12 + month - 1).astype("datetime64[M]")
    length = ((months + 1).astype("datetime64[D]") - months.astype("datetime64[D]")).astype(
        np.int64
    )
    good &= day <= length
    days = months.astype("datetime64[D]").astype(np.int64) + day - 1
    return Dates(np.where(good, days * DAY_US + micros, 0), good, good & timed)


def _century(year: np.ndarray) -> np.ndarray:
    """Years of two digits in full."""
    return np.where(year >= PIVOT, 1900 + year, 2000 + year)


def _field(parts: pa.Array, name: str) -> pa.Array:
    return pc.struct_field(parts, [parts.type.get_field_index(name)])


def _whole(parts: pa.Array, name: str) -> np.ndarray:
    """A part as whole numbers, 0 where there is none."""
    text = pc.fill_null(_field(parts, name), "0")
    numbers: np.ndarray = pc.cast(pc.if_else(pc.equal(text, ""), "0", text), pa.int64()).to_numpy(
        zero_copy_only=False
    )
    return numbers


def _valid(parts: pa.Array) -> np.ndarray:
    valid: np.ndarray = pc.is_valid(parts).to_numpy(zero_copy_only=False)
    return valid
