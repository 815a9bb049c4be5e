"""The forms that the texts of a column could be in: each is tried on all of them."""

from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raymtl.data.tables.dates import ORDERS, dates, times
from raymtl.data.tables.finding import NEARLY_ALL, Finding, Keys
from raymtl.data.tables.numerals import (
    Numerals,
    fits,
    grouped,
    number_forms,
    numerals,
    small_wholes,
    values,
)
from raymtl.data.tables.plain_forms import CODE
from raymtl.data.tables.schema import TextForm

FEW_UNITS = 5
"""Of a column of numbers with units, which is none because of them."""


MANY = 3
"""Cells with groups of three digits, from which on small numbers beside them show that groups are
meant.
"""


class _Trial(NamedTuple):
    form: TextForm
    good: np.ndarray
    """Which texts it reads."""
    read: np.ndarray
    """As what."""


def tried(texts: pa.Array, counts: np.ndarray, keys: Keys) -> Finding:
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
    zeros = pc.fill_null(pc.match_substring_regex(parts.body, CODE), False).to_numpy(
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
