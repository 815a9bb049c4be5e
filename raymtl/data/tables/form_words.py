"""What notes and errors say about how texts are written."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raymtl.data.tables.columns import plain
from raymtl.data.tables.finding import Finding, Keys
from raymtl.data.tables.findings import shown
from raymtl.data.tables.read_forms import read_as
from raymtl.data.tables.schema import TextForm


def taken_for_missing(values: pa.ChunkedArray, text: pa.Array) -> str:
    """How many labels count as missing for their words; nothing where there are none."""
    trimmed = pc.utf8_trim_whitespace(plain(values))
    taken = pc.and_(pc.is_null(text), pc.not_equal(trimmed, ""))
    words = pc.value_counts(trimmed.filter(pc.fill_null(taken, False))).to_pylist()
    which = ", ".join(shown(entry["values"]) for entry in words[:3])
    if words:
        return f"{sum(entry['counts'] for entry in words)} of {len(trimmed)} labels are {which}"
    return ""


def doubt(column: pa.Array, finding: Finding) -> str:
    """Between which values of its first cell a column leaves a doubt."""
    cell = column.slice(finding.first, 1)
    values = [as_written(read_as(cell, form).values[0]) for form in finding.others]
    if len(set(values)) < 2:  # the first cell is none of those that differ
        cells = pc.unique(column.drop_null())
        read = [read_as(cells, form).values for form in finding.others[:2]]
        place = int(np.argmax(pc.not_equal(*read).to_numpy(zero_copy_only=False)))
        cell, values = cells.slice(place, 1), [as_written(part[place]) for part in read]
    return f"{shown(cell[0])} can be {' or '.join(values)}"


def key_of_doubt(finding: Finding) -> str:
    """The key that settles it."""
    if finding.others[0].order:
        return "data.dates"
    return "data.decimal"


def key_of(form: TextForm, keys: Keys) -> str | None:
    """The key that changes a form that was found; None for one that the user gave or anybody would
    read so.
    """
    if form.is_date and form.order:
        if keys.dates:
            return None
        return "data.dates"
    if form.value_type != "number":
        return None
    if form.decimal == "," and keys.decimal is None:
        return "data.decimal"
    if form.thousands is not None and keys.thousands is None and keys.decimal is None:
        return "data.thousands"
    if form.unit:
        return "data.inputs"
    return None


def in_words(form: TextForm) -> str:
    """What cells of a form that was found are."""
    if form.is_date and form.order:
        order = {"ymd": "year, month, day", "dmy": "day, month, year", "mdy": "month, day, year"}
        return f"dates in the order {order[form.order]}"
    if form.value_type != "number":
        return "texts that are numbers or dates"
    marks = []
    if form.decimal == ",":
        marks.append("a decimal comma")
    if form.thousands is not None:
        if form.thousands == " ":
            mark = "a space"
        else:
            mark = shown(form.thousands)
        marks.append(f"{mark} between groups of digits")
    if form.unit:
        marks.append(f"{shown(form.unit)} beside them")
    if marks:
        return "numbers with " + " and ".join(marks)
    return "texts that are numbers"


def as_written(value: pa.Scalar) -> str:
    read = value.as_py()
    if isinstance(read, float):
        return f"{read:.15g}"
    return str(read)
