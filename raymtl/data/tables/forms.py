"""What texts stand for: finding how a column of texts is written, and reading it as numbers, dates
or texts.

A form is found on its own where it leaves no doubt, that is where it alone reads every cell. Where
several do, the other columns of the table decide, or the texts stay texts.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raymtl.data.tables.dates import ORDERS, compact, dates, times
from raymtl.data.tables.numerals import (
    Numerals,
    fits,
    grouped,
    number_forms,
    numerals,
    small_wholes,
    values,
)
from raymtl.data.tables.read_forms import FLAGS, cast_all, some_of
from raymtl.data.tables.schema import DateOrder, Decimal, TextForm, Thousands

NEARLY_ALL = 0.6
"""A share of cells that could be numbers or dates, from which on it is said why the column is none.
"""
FEW_UNITS = 5
"""Of a column of numbers with units, which is none because of them."""
NAMED = 3
"""Cells that are named."""
MANY = 3
"""Cells with groups of three digits, from which on small numbers beside them show that groups are
meant.
"""

TEXT, POINT = TextForm(kind="text"), TextForm(kind="number")
_CODE = r"^[+-]?0[0-9xX]+$"
NO_NUMBER = rf"{_CODE}|^[+-]?\d{{19,}}$"
"""Codes with zeros before them, and names of digits, of which different ones would be the same
64-bit float.
"""


class Keys(NamedTuple):
    """What the configuration says about how numbers and dates are written; None where it says
    nothing.
    """

    decimal: Decimal | None = None
    thousands: Thousands | None = None
    dates: DateOrder | None = None


class Finding(NamedTuple):
    """How the texts of a column are written."""

    form: TextForm = TEXT
    others: tuple[TextForm, ...] = ()
    """Where there is a doubt: the forms that read every cell too."""
    share: float = 0.0
    """Of the cells that `best` reads, where no form reads all."""
    best: TextForm | None = None
    odd: tuple[int, ...] = ()
    """The rows of the first cells that are not, where nearly all are."""
    codes: tuple[int, ...] = ()
    """The rows of the first cells that begin with a zero, where all would be numbers otherwise."""
    first: int = 0
    """The row of the first cell."""


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
    finding = _tried(encoded.dictionary, counts, keys)._replace(first=first)
    if not (finding.odd or finding.codes):
        return finding
    rows = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    return finding._replace(odd=_rows_of(rows, finding.odd), codes=_rows_of(rows, finding.codes))


def _rows_of(rows: np.ndarray, odd: Iterable[int]) -> tuple[int, ...]:
    """The first rows of the cells of these codes."""
    return tuple(np.flatnonzero(np.isin(rows, list(odd)))[:NAMED].tolist())


def plain_form(known: pa.Array, keys: Keys = Keys(), *, days: bool = True) -> TextForm | None:
    """The form of trimmed texts [N], none of them null, that anybody would read alike; None where
    they have none.

    `days` says whether whole numbers such as 20241231 may be dates.
    """
    if pc.is_in(pc.utf8_lower(known[:1]), value_set=FLAGS)[0].as_py():
        flags = pc.all(pc.is_in(pc.utf8_lower(known), value_set=FLAGS)).as_py()
        if flags:
            return TextForm(kind="flag")
        return None
    whole = cast_all(known, pa.int64())
    if whole is not None and not pc.any(pc.match_substring_regex(known, _CODE)).as_py():
        if days and _days_of_eight_digits(known, whole, keys):
            return TextForm(kind="date", order="ymd")
        return _WHOLE
    if whole is None and keys.decimal != "," and keys.thousands != ".":
        number = cast_all(known, pa.float64())
        if number is not None and not pc.any(pc.match_substring_regex(known, NO_NUMBER)).as_py():
            return TextForm(kind="number")
    for kind, target in (
        ("date", pa.date32()),
        ("moment", pa.timestamp("us")),
        ("moment", pa.timestamp("us", "UTC")),
    ):
        if whole is None and cast_all(known, target) is not None:
            return TextForm(kind=kind)
    return None


_WHOLE = TextForm(kind="whole")


def _days_of_eight_digits(known: pa.Array, whole: pa.Array, keys: Keys) -> bool:
    """Whether whole numbers are dates such as 20241231: five different ones at least, and all of
    them.
    """
    ends = pc.min_max(whole).as_py()
    if keys.dates not in (None, "ymd") or ends["min"] < 18000101 or ends["max"] > 21991231:
        return False
    return len(pc.unique(whole)) >= 5 and bool(compact(known).known.all())


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


class _Trial(NamedTuple):
    form: TextForm
    good: np.ndarray
    """Which texts it reads."""
    read: np.ndarray
    """As what."""


def _tried(texts: pa.Array, counts: np.ndarray, keys: Keys) -> Finding:
    """Tries all forms on different texts [U] that are in so many cells [U]; rows are codes of texts
    here.
    """
    parts = numerals(texts)
    trials = _number_trials(texts, parts, counts, keys) + _date_trials(texts, keys)
    if not trials:
        return Finding()
    whole = [trial for trial in trials if trial.good.all()]
    if whole:
        return _of_whole(_different(whole), parts)
    best = max(trials, key=lambda trial: counts[trial.good].sum())
    share = float(counts[best.good].sum() / counts.sum())
    zeros = pc.fill_null(pc.match_substring_regex(parts.body, _CODE), False).to_numpy(
        zero_copy_only=False
    )
    if (best.good | zeros).all():
        return Finding(best=best.form, codes=tuple(np.flatnonzero(zeros).tolist()))
    of_units = (
        2 <= len(pc.unique(parts.unit.drop_null())) <= FEW_UNITS or keys.decimal or keys.thousands
    )
    share_like = float(
        counts[parts.body.is_valid().to_numpy(zero_copy_only=False)].sum() / counts.sum()
    )
    if share < NEARLY_ALL and not (of_units and share_like >= NEARLY_ALL):
        return Finding(share=share, best=best.form)
    odd = np.flatnonzero(~(best.good | zeros)).tolist()
    return Finding(share=share, best=best.form, odd=tuple(odd))


def _different(trials: list[_Trial]) -> list[_Trial]:
    """Without those that read the same as one before them."""
    different: list[_Trial] = []
    for trial in trials:
        if not any(np.array_equal(trial.read, other.read) for other in different):
            different.append(trial)
    return different


def _of_whole(trials: list[_Trial], parts: Numerals) -> Finding:
    """What these forms say that read every cell, each something else."""
    forms = tuple(trial.form for trial in trials)
    if len(forms) == 1:
        return Finding(forms[0])
    if forms[0].order:
        return Finding(others=forms)
    for mark in ",.":
        groups, small = grouped(parts, mark), small_wholes(parts)
        if groups.sum() >= MANY and small.any() and (groups | small).all():
            return Finding(next((form for form in forms if form.thousands == mark), forms[0]))
    return Finding(others=forms)


def _number_trials(
    texts: pa.Array, parts: Numerals, counts: np.ndarray, keys: Keys
) -> list[_Trial]:
    trials = []
    for form in number_forms(parts, counts):
        if keys.decimal not in (None, form.decimal):
            continue
        if keys.thousands is not None and (form.thousands or keys.thousands) != keys.thousands:
            continue
        if form.decimal == keys.thousands:
            continue
        numbers = values(parts, form)
        trials.append(_Trial(form, fits(parts, form), _filled(numbers)))
    micros, good = times(texts)
    return [*trials, _Trial(TextForm(kind="time"), good, micros)]


def _filled(numbers: pa.Array) -> np.ndarray:
    array: np.ndarray = pc.fill_null(numbers, 0.0).to_numpy(zero_copy_only=False)
    return array


def _date_trials(texts: pa.Array, keys: Keys) -> list[_Trial]:
    """Of the orders of day, month and year. Between points the day is first, wherever dates are
    written so.
    """
    pointed = bool(pc.all(pc.match_substring_regex(texts, r"^\d{1,2}\. ?\d{1,2}\.")).as_py())
    orders = [order for order in ORDERS if keys.dates in (None, order) or order == "ymd"]
    trials = []
    for order in orders:
        if pointed and keys.dates is None and order == "mdy":
            continue
        read_dates = dates(texts, order)
        kind: Literal["moment", "date"]
        if read_dates.timed.any():
            kind = "moment"
        else:
            kind = "date"
        trials.append(_Trial(TextForm(kind=kind, order=order), read_dates.known, read_dates.micros))
    return trials
