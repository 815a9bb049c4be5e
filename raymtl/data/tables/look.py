"""What the columns of the user's files are looked at with, and what is found in them."""

from collections.abc import Mapping
from typing import NamedTuple

import pyarrow as pa

from raymtl.data.tables.columns import LocateRow
from raymtl.data.tables.dataset import TableDataset
from raymtl.data.tables.finding import NEARLY_ALL, TEXT, Finding, Keys
from raymtl.data.tables.findings import rows_named, shown
from raymtl.data.tables.form_words import as_written, doubt, in_words, key_of, key_of_doubt
from raymtl.data.tables.read_forms import read_as
from raymtl.data.tables.schema import TextForm
from raymtl.data.tables.settings import FilesConfig
from raymtl.storage.notes import Note
from raymtl.types import UserError

PLAIN = tuple(TextForm(kind=kind) for kind in ("flag", "whole", "number"))
"""What anybody would read so: the cells of text files in these forms need no word about it."""


class Readings(NamedTuple):
    """The forms of columns, those of the labels of tasks, and why columns that are nearly all
    numbers are none.
    """

    forms: dict[str, TextForm]
    label_forms: dict[str, dict[str, TextForm]]
    oddities: dict[str, str]
    notes: list[Note]


def plain_or_text(finding: Finding) -> TextForm:
    """Of a column that is no input, such as a key: as it is written but for plain numbers."""
    if finding.form in PLAIN:
        return finding.form
    return TEXT


class Look(NamedTuple):
    """What the columns of a source are looked at with, and what is found."""

    source: FilesConfig
    dataset: TableDataset
    keys: Keys
    locate_row: LocateRow
    findings: Mapping[str, Finding]
    readings: Readings

    def of_number(self, name: str, column: pa.Array, finding: Finding, key: str) -> TextForm:
        """The form of a column that the user takes for numbers, whatever its cells are."""
        if finding.form != TEXT:
            return finding.form
        if finding.codes:
            return TextForm(kind="whole")
        if finding.others:
            raise UserError(
                f"{key}: {self.locate_row(finding.first)}, column '{name}': expected numbers or "
                f"dates that leave no doubt, got {doubt(column, finding)}. Say "
                f"{key_of_doubt(finding)}."
            )
        return finding.best or TextForm(kind="number")

    def oddity(self, column: pa.Array, finding: Finding) -> str:
        """Which cells keep a column from being read as numbers or dates."""
        known = len(column) - column.null_count
        good = round(finding.share * known)
        if finding.best and finding.best.is_date:
            what = "dates"
        else:
            what = "numbers"
        first = rows_named(finding.odd, self.locate_row)
        if finding.share < NEARLY_ALL / 2 and (self.keys.decimal or self.keys.thousands):
            keys = " and ".join(
                f"data.{key}" for key in ("decimal", "thousands") if getattr(self.keys, key)
            )
            return (
                f"{good} of {known} cells are numbers as {keys} says, and not "
                f"{shown(column[finding.odd[0]])} ({first})"
            )
        return (
            f"{good} of {known} cells are {what}, but not {shown(column[finding.odd[0]])} ({first})"
        )

    def note_form(self, place: str, column: pa.Array, form: TextForm, written: bool) -> None:
        """A note on a form that was found, unless nobody would wonder at it."""
        key = key_of(form, self.keys) or (None if written or form == TEXT else "data.inputs")
        if key is None:
            return
        first = column.drop_null()[:1]
        value = as_written(read_as(first, form).values[0])
        text = f"{in_words(form)}: {shown(first[0])} is read as {value}"
        self.readings.notes.append(Note(place=place, text=text, key=key))
