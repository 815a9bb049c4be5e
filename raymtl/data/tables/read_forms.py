"""Texts read in the forms that were found for them: as numbers, flags, dates or times."""

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raymtl.data.tables.dates import compact, dates, times
from raymtl.data.tables.numerals import numerals, values
from raymtl.data.tables.schema import TextForm

SAMPLE = 64
"""Cells that are looked at first: a column of texts is not to cost more."""
FLAGS = pa.array(["true", "false"])


def some_of(texts: pa.Array) -> pa.Array:
    """Some of the texts of a column, evenly spaced: what fails for one of them fails for all."""
    if len(texts) <= SAMPLE:
        return texts
    return texts.take(pa.array(np.unique(np.linspace(0, len(texts) - 1, SAMPLE).astype(int))))


def cast_all(known: pa.Array, target: pa.DataType) -> pa.Array | None:
    try:
        pc.cast(some_of(known), target)  # every cell that cannot be cast costs a message
        return pc.cast(known, target)
    except pa.ArrowInvalid:
        return None


class Values(NamedTuple):
    """The values of a column [N], and which texts could not be read, [N] bool."""

    values: pa.Array
    wrong: np.ndarray


def read_as(texts: pa.Array, form: TextForm) -> Values:
    """Reads trimmed texts [N], null where a cell is missing."""
    if form.value_type == "text":
        return Values(texts, np.zeros(len(texts), bool))
    made = _READERS[form.value_type](texts, form)
    wrong = pc.and_(pc.is_null(made), pc.is_valid(texts))
    return Values(made, wrong.to_numpy(zero_copy_only=False))


def _read_flags(texts: pa.Array, form: TextForm) -> pa.Array:
    lower = pc.utf8_lower(texts)
    return pc.if_else(pc.is_in(lower, value_set=FLAGS), pc.equal(lower, "true"), None)


def _read_wholes(texts: pa.Array, form: TextForm) -> pa.Array:
    whole = cast_all(texts, pa.int64())
    if whole is not None:
        return whole
    return _read_numbers(texts, form)


def _read_numbers(texts: pa.Array, form: TextForm) -> pa.Array:
    plain = form.decimal == "." and form.thousands is None and not form.unit
    if plain:
        number = cast_all(texts, pa.float64())
    else:
        number = None
    if number is not None:
        return number
    numbers = values(numerals(texts), form)
    if not plain:
        return numbers
    # What has no digits, such as inf, or zeros before it.
    rest = pc.if_else(
        pc.match_substring_regex(texts, r"^[+-]?(?i:inf|infinity|nan|0\d+)$"), texts, None
    )
    return pc.coalesce(numbers, pc.cast(rest, pa.float64()))


def _read_dates(texts: pa.Array, form: TextForm) -> pa.Array:
    if form.order is None:
        for target in (pa.timestamp("us"), pa.timestamp("us", "UTC")):
            converted = cast_all(texts, target)
            if converted is not None:
                return _as_kind(converted.cast(pa.timestamp("us")), form)
    read = dates(texts, form.order or "ymd")
    eight = compact(texts)
    micros, known = np.where(read.known, read.micros, eight.micros), read.known | eight.known
    return _as_kind(pa.array(micros, pa.timestamp("us"), mask=~known), form)


def _as_kind(moments: pa.Array, form: TextForm) -> pa.Array:
    if form.value_type == "date":
        return moments.cast(pa.date32(), safe=False)
    return moments


def _read_times(texts: pa.Array, form: TextForm) -> pa.Array:
    micros, known = times(texts)
    return pa.array(micros, pa.time64("us"), mask=~known)


_READERS = {
    "flag": _read_flags,
    "whole": _read_wholes,
    "number": _read_numbers,
    "date": _read_dates,
    "moment": _read_dates,
    "time": _read_times,
}
