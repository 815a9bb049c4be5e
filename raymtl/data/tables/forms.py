"""What texts stand for: finding how a column of texts is written, and reading it as numbers, dates
or texts.

A form is found on its own where it leaves no doubt, that is where it alone reads every cell. Where
several do, the other columns of the table decide, or the texts stay texts.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raymtl.data.tables.dates import ORDERS, dates, times
from raymtl.data.tables.finding import NEARLY_ALL, POINT, Finding, Keys
from raymtl.data.tables.form_trials import tried
from raymtl.data.tables.numerals import (
    grouped,
    numerals,
    small_wholes,
)
from raymtl.data.tables.plain_forms import plain_form
from raymtl.data.tables.read_forms import some_of
from raymtl.data.tables.schema import DateOrder, Decimal, TextForm

NAMED = 3
"""Cells that are named."""


def find_forms(
    columns: Mapping[str, pa.Array],
    keys: Keys,
    *,
    commas_divide: bool | None,
    known: Mapping[str, Finding] | None = None,
) -> dict[str, Finding]:
    """How each of these columns of trimmed texts is written, null where a cell is missing; of some
    it is known.

    `commas_divide` says whether commas stand between cells of the file, so that one in a cell is
    hardly a decimal sign; None where it has no delimiters.
    """
    known = known or {}
    findings = {name: known.get(name) or find_form(columns[name], keys) for name in columns}
    habits = _habits(list(findings.values()), commas_divide)
    for name, finding in findings.items():
        if finding.others:
            findings[name] = _settled(finding, habits)
        elif finding.form == POINT and not keys.decimal and not keys.thousands:
            findings[name] = _with_doubt_of_groups(finding, columns[name], habits)
    return findings


class _Habits(NamedTuple):
    """How numbers and dates are written in the columns of a table that leave no doubt."""

    comma: bool
    """Whether commas are decimal signs in some."""
    point: bool
    """Whether points are decimal signs in some."""
    orders: set[DateOrder]
    """The orders of day, month and year, other than that of ISO 8601."""
    commas_divide: bool | None

    @property
    def decimal(self) -> Decimal | None:
        """The decimal sign where a column leaves it in doubt; None where the others do too."""
        if self.comma or (self.commas_divide is False and not self.point):
            return ","
        if self.commas_divide or self.point:
            return "."
        return None


def _habits(findings: Sequence[Finding], commas_divide: bool | None) -> _Habits:
    sure = [finding.form for finding in findings if not finding.others]
    orders: set[DateOrder] = {form.order for form in sure if form.order}
    orders.discard("ymd")
    comma = any(form.decimal == "," for form in sure)
    point = any(form.value_type == "number" and form.decimal == "." for form in sure)
    return _Habits(comma, point, orders, commas_divide)


def _settled(finding: Finding, habits: _Habits) -> Finding:
    """What a doubtful column is where the other columns of the table leave one form; else the
    same.
    """
    if finding.others[0].order:
        chosen = [form for form in finding.others if habits.orders == {form.order}]
    else:
        chosen = [form for form in finding.others if form.decimal == habits.decimal]
    if len(chosen) == 1:
        return finding._replace(form=chosen[0], others=())
    return finding


def _with_doubt_of_groups(finding: Finding, column: pa.Array, habits: _Habits) -> Finding:
    """Numbers whose points could stand between groups of digits, where commas are decimal signs."""
    if not habits.comma and habits.commas_divide is not False:
        return finding
    form = _with_groups(column)
    if form is None:
        return finding
    if habits.comma:
        return finding._replace(form=form)
    return finding._replace(others=(POINT, form))


def _with_groups(column: pa.Array) -> TextForm | None:
    """The form with points between groups of digits, where all numbers of a column could be of
    it.
    """
    some = numerals(some_of(column.drop_null()))
    if not (grouped(some, ".") | small_wholes(some)).all():
        return None
    parts = numerals(column.drop_null())
    groups = grouped(parts, ".")
    if groups.sum() >= 1 and (groups | small_wholes(parts)).all():
        return TextForm(kind="number", decimal=",", thousands=".")
    return None


def find_form(column: pa.Array, keys: Keys) -> Finding:
    """How the trimmed texts of a column [N] are written, by themselves."""
    known = column.drop_null()
    if not len(known):
        return Finding()
    if column.null_count == 0:
        first = 0
    else:
        first = int(np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False))[0])
    form = plain_form(known, keys)
    if form is not None:
        return Finding(form, first=first)
    if _like(some_of(known)) < 0.7 * NEARLY_ALL:
        return Finding(first=first)
    encoded = pc.dictionary_encode(column)
    codes = encoded.indices.drop_null().to_numpy(zero_copy_only=False)
    counts = np.bincount(codes, minlength=len(encoded.dictionary))
    finding = tried(encoded.dictionary, counts, keys)._replace(first=first)
    if not (finding.odd or finding.codes):
        return finding
    rows = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    return finding._replace(odd=_rows_of(rows, finding.odd), codes=_rows_of(rows, finding.codes))


def _rows_of(rows: np.ndarray, odd: Iterable[int]) -> tuple[int, ...]:
    """The first rows of the cells of these codes."""
    return tuple(np.flatnonzero(np.isin(rows, list(odd)))[:NAMED].tolist())


def _like(sample: pa.Array) -> float:
    """The share of these texts that could be numbers or dates of some form, all of which have
    digits.
    """
    digits = pc.match_substring_regex(sample, r"\d")
    if pc.mean(digits).as_py() < NEARLY_ALL / 2:
        return 0.0
    good = numerals(sample).body.is_valid().to_numpy(zero_copy_only=False) | times(sample)[1]
    for order in ORDERS:
        good = good | dates(sample, order).known
    return float(good.mean())
