"""Cells of text files and other columns of texts, read in the forms that were found or that anybody
would read.
"""

from collections.abc import Callable, Collection, Iterable

import pyarrow as pa
import pyarrow.compute as pc

from raymtl.data.tables.columns import plain
from raymtl.data.tables.finding import TEXT
from raymtl.data.tables.plain_forms import NO_NUMBER, plain_form
from raymtl.data.tables.read_forms import read_as, some_of
from raymtl.data.tables.schema import TextForm
from raymtl.types import UserError

LocateRow = Callable[[int], str]
NOTHING = pa.array([""])
"""The cells that are missing in files that can say so themselves."""


def missing_words(words: Iterable[str], kept: Collection[str] = ()) -> pa.Array:
    """The cells that stand for nothing, trimmed: these words without those that are kept, since
    they are classes.
    """
    return pa.array(sorted({word.strip() for word in words} - set(kept) | {""}), pa.string())


def blanked(column: pa.ChunkedArray, missing: pa.Array) -> pa.Array:
    """The texts of a column [N] without spaces around them, null where a cell stands for
    nothing.
    """
    text = pc.utf8_trim_whitespace(plain(column).cast(pa.string()))
    return pc.if_else(pc.is_in(text, value_set=missing), None, text)


def plainly(column: pa.ChunkedArray, missing: pa.Array) -> pa.Array:
    """Cells of a text file [N] as numbers, flags and dates, where anybody would read them so; else
    as texts.
    """
    values = _at_once(column)
    if values is not None:
        return values
    text = blanked(column, missing)
    known = text.drop_null()
    if not len(known):
        return pa.nulls(len(text))
    return read_as(text, plain_form(known, days=False) or TEXT).values


def _at_once(column: pa.ChunkedArray) -> pa.Array | None:
    """Numbers where all cells are such and none is a code: most columns need nothing else."""
    if not len(column):
        return None
    values = plain(column)
    for kind in (pa.int64(), pa.float64()):
        try:
            pc.cast(some_of(values), kind)
            converted = pc.cast(values, kind)
        except pa.ArrowInvalid:
            continue
        if pc.any(pc.match_substring_regex(values, NO_NUMBER)).as_py():
            return None
        return converted
    return None


def formed(
    column: pa.ChunkedArray, form: TextForm, missing: pa.Array, locate_row: Callable[[int], str]
) -> pa.Array:
    """The cells of a column [N] in a form. `locate_row` gives the file, the row and the column of a
    cell.

    Raises UserError for a cell that is not of the form.
    """
    text = blanked(column, missing)
    if form.value_type == "text":
        return text
    values, wrong = read_as(text, form)
    if wrong.any():
        row = int(wrong.argmax())
        raise UserError(
            f"{locate_row(row)}: expected {described(form)}, got '{text[row].as_py()}'. Correct "
            "the cell, or add it to data.missing_values if it stands for nothing."
        )
    return values


def described(form: TextForm) -> str:
    """What a cell of the form is, in words."""
    if form.is_date:
        order = {
            "ymd": "year, month and day",
            "dmy": "day, month and year",
            "mdy": "month, day and year",
        }
        if form.order:
            return f"a date of {order[form.order]} as in other rows"
        return "a date"
    if form.value_type in ("flag", "time"):
        return {"flag": "true or false", "time": "a time"}[form.value_type]
    if form.decimal == "," or form.thousands:
        marks = f" with the decimal sign '{form.decimal}'"
    else:
        marks = ""
    if form.unit:
        unit = f" and '{form.unit}' beside it"
    else:
        unit = ""
    return f"a number{marks}{unit}"
