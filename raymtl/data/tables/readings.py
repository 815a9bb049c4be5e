"""How the columns of the user's files are written: found before their roles and tasks, and told
where it was found.
"""

from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raymtl.data.tables.cells import NOTHING, blanked, missing_words
from raymtl.data.tables.columns import LocateRow, is_text, plain
from raymtl.data.tables.dataset import TableDataset, TableRows
from raymtl.data.tables.findings import columns_named, rows_named, shown
from raymtl.data.tables.forms import NEARLY_ALL, TEXT, Finding, Keys, find_forms
from raymtl.data.tables.label_kinds import FEW
from raymtl.data.tables.plain_cells import plain_cells
from raymtl.data.tables.read_forms import read_as
from raymtl.data.tables.schema import Role, TaskColumn, TextForm
from raymtl.data.tables.settings import FilesConfig
from raymtl.data.tables.task_labels import JoinedLabels
from raymtl.storage.notes import Note
from raymtl.types import UserError

PLAIN = tuple(TextForm(kind=kind) for kind in ("flag", "whole", "number"))
"""What anybody would read so: the cells of text files in these forms need no word about it."""


class Blanked(Mapping[str, pa.Array]):
    """Trimmed texts of columns, null where a cell is missing, each made when it is asked for."""

    def __init__(self, columns: Mapping[str, pa.ChunkedArray], missing: pa.Array) -> None:
        self.columns = columns
        self.missing = missing
        self.made: dict[str, pa.Array] = {}

    def __getitem__(self, name: str) -> pa.Array:
        if name not in self.made:
            self.made[name] = blanked(self.columns[name], self.missing)
        return self.made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)

    def __len__(self) -> int:
        return len(self.columns)

    def plain(self) -> dict[str, Finding]:
        """Of the columns that are plain numbers without doubt: how they are written."""
        names = list(self.columns)
        plain_columns = plain_cells(list(self.columns.values()), self.missing)
        whole, real = TextForm(kind="whole"), TextForm(kind="number")
        return {
            names[place]: Finding(
                whole if pa.types.is_int64(values.type) else real, first=plain_columns.first[place]
            )
            for place, values in plain_columns.numbers.items()
        }


class Readings(NamedTuple):
    """The forms of columns, those of the labels of tasks, and why columns that are nearly all
    numbers are none.
    """

    forms: dict[str, TextForm]
    label_forms: dict[str, dict[str, TextForm]]
    oddities: dict[str, str]
    notes: list[Note]


def find_readings(
    source: FilesConfig, dataset: TableDataset, raw: TableRows, locate_row: LocateRow
) -> Readings:
    """Looks at the cells as they are written. Raises UserError for labels of which it is in doubt
    what they are.
    """
    keys = Keys(source.decimal, source.thousands, source.dates)
    missing = missing_words(source.missing_values)
    columns = Blanked(
        {
            name: column
            for name, column in zip(raw.table.column_names, raw.table.columns, strict=True)
            if is_text(column.type) and name not in dataset.names_of_files
        },
        missing,
    )
    if keys == Keys():
        plain = columns.plain()
    else:
        plain = {}
    findings = find_forms(columns, keys, commas_divide=dataset.commas_divide, known=plain)
    readings = Readings({}, {}, {}, list(dataset.header_notes))
    look = _Look(source, dataset, keys, locate_row, findings, readings)
    candidates = dataset.candidates()
    for name, finding in findings.items():
        role = given_role(source, dataset, name)
        if name in plain and role is None and name in dataset.written_columns:
            continue  # read so by everybody
        if name in candidates:
            form = look.of_input(name, columns[name], finding, role)
        else:
            form = _plain_or_text(finding)
        if form not in PLAIN or name not in dataset.written_columns:
            readings.forms[name] = form
    look.note_forms(columns, [name for name in candidates if name in readings.forms])
    for name, task in source.tasks.items():
        if not dataset.labels[name].in_files:
            readings.label_forms[name] = look.of_labels(name, task, raw.labels[name])
    return readings


def given_role(source: FilesConfig, dataset: TableDataset, name: str) -> Role | None:
    """The role that the configuration gives a column, by its name or else by a pattern."""
    if not isinstance(source.inputs, str | tuple):
        given = source.inputs
    else:
        given = {}
    if name in given:
        return given[name]
    return next(
        (
            r
            for pattern, r in given.items()
            if pattern not in dataset.names and fnmatchcase(name, pattern)
        ),
        None,
    )


def _plain_or_text(finding: Finding) -> TextForm:
    """Of a column that is no input, such as a key: as it is written but for plain numbers."""
    if finding.form in PLAIN:
        return finding.form
    return TEXT


class _Look(NamedTuple):
    """What the columns of a source are looked at with, and what is found."""

    source: FilesConfig
    dataset: TableDataset
    keys: Keys
    locate_row: LocateRow
    findings: Mapping[str, Finding]
    readings: Readings

    def of_input(
        self, name: str, column: pa.Array, finding: Finding, role: Role | None
    ) -> TextForm:
        """The form of an input, and the notes on it. Raises UserError for a doubt where the role is
        given.
        """
        if role == "number":
            return self._of_number(name, column, finding, "data.inputs")
        if role is not None:
            return TEXT
        place = columns_named([name])
        if finding.codes:
            first = rows_named(finding.codes, self.locate_row)
            text = (
                f"has codes that begin with 0, such as {shown(column[finding.codes[0]])} "
                f"({first}), so it is text"
            )
            self.readings.notes.append(Note(place=place, text=text, key="data.inputs"))
        if finding.others:
            if finding.form == TEXT:
                became = "text"
            else:
                became = "the first"
            text = f"{doubt(column, finding)}, and is taken for {became}"
            self.readings.notes.append(Note(place=place, text=text, key=key_of_doubt(finding)))
        if finding.odd:
            self.readings.oddities[name] = self.oddity(column, finding)
        return finding.form

    def _of_number(self, name: str, column: pa.Array, finding: Finding, key: str) -> TextForm:
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

    def note_forms(self, columns: Mapping[str, pa.Array], names: Sequence[str]) -> None:
        """Notes on forms that were found, one for all columns of a form."""
        by_form: dict[TextForm, list[str]] = {}
        for name in names:
            by_form.setdefault(self.readings.forms[name], []).append(name)
        for form, alike_columns in by_form.items():
            self._note_form(
                columns_named(alike_columns),
                columns[alike_columns[0]],
                form,
                alike_columns[0] in self.dataset.written_columns,
            )

    def _note_form(self, place: str, column: pa.Array, form: TextForm, written: bool) -> None:
        key = key_of(form, self.keys) or (None if written or form == TEXT else "data.inputs")
        if key is None:
            return
        first = column.drop_null()[:1]
        value = _as_written(read_as(first, form).values[0])
        text = f"{_in_words(form)}: {shown(first[0])} is read as {value}"
        self.readings.notes.append(Note(place=place, text=text, key=key))

    def of_labels(
        self, name: str, task: TaskColumn, labels: Mapping[str, pa.ChunkedArray]
    ) -> dict[str, TextForm]:
        """The forms of the columns of a task, as far as they are not plain."""
        forms = {}
        for column, values in labels.items():
            if not is_text(values.type) or column in self.dataset.names_of_files:
                continue
            written = self.dataset.labels[name].cells(column)
            text = blanked(values, written.missing if written.columns else NOTHING)
            self._refuse_missing(name, task, column, values, text)
            form = self._of_label(name, task, column, text, len(labels) > 1)
            if form not in PLAIN or column not in written.columns:
                forms[column] = form
            if form == TEXT and written.columns:
                self._note_missing(name, values, text)
        return forms

    def _of_label(
        self, name: str, task: TaskColumn, column: str, text: pa.Array, several: bool
    ) -> TextForm:
        kind = task.task_kind
        if kind is not None and kind.has_label_sets and not several:
            return TEXT
        finding = self._finding(name, column, text)
        if kind is not None and kind.predicts_numbers:
            form = self._of_number(column, text, finding, f"data.tasks.{name}")
        elif task.classes:
            return _of_classes(finding.form, text, self.dataset.labels[name].classes)
        elif kind is not None:
            return _plain_or_text(finding)
        else:
            form = self._inferred(name, column, text, finding)
        self._note_form(f"task '{name}'", text, form, True)
        if finding.others and form == finding.form != TEXT:
            said = f"{doubt(text, finding)}, and is taken for the first"
            self.readings.notes.append(
                Note(place=f"task '{name}'", text=said, key=key_of_doubt(finding))
            )
        return form

    def _finding(self, name: str, column: str, text: pa.Array) -> Finding:
        """How labels are written: as was found beside the other columns of their table, if they are
        of it.
        """
        labels = self.dataset.labels[name]
        is_joined = isinstance(labels, JoinedLabels)
        if column in self.findings and not is_joined and not labels.classes:
            return self.findings[column]
        return find_forms({column: text}, self.keys, commas_divide=self.dataset.commas_divide)[
            column
        ]

    def _inferred(self, name: str, column: str, text: pa.Array, finding: Finding) -> TextForm:
        """Of labels whose kind is not given: few different ones are classes, and stay as they are
        written.
        """
        different = len(pc.unique(text.drop_null()))
        known = len(text) - text.null_count
        few = different <= FEW and known >= 3 * different
        come_again = 2 <= different <= max(FEW, known / 5)
        if finding.form != TEXT:
            if few and finding.form not in PLAIN:
                return TEXT
            return finding.form
        place = f"data.tasks.{name}: {self.locate_row(finding.first)}, column '{column}'"
        if finding.odd and come_again:
            note = f"{self.oddity(text, finding)}, so they are classes"
            self.readings.notes.append(
                Note(place=f"task '{name}'", text=note, key="data.missing_values")
            )
        elif finding.odd:
            row, cell = finding.odd[0], text[finding.odd[0]]
            raise UserError(
                f"data.tasks.{name}: {self.locate_row(row)}, column '{column}': expected a number "
                f"or date as in most rows, got {shown(cell)}: {self.oddity(text, finding)}. "
                "Correct it, or add it to data.missing_values if it stands for nothing."
            )
        elif finding.others and not few:
            raise UserError(
                f"{place}: expected labels that leave no doubt, got {doubt(text, finding)}. "
                f"Say {key_of_doubt(finding)}."
            )
        return TEXT

    def _note_missing(self, name: str, values: pa.ChunkedArray, text: pa.Array) -> None:
        """A note on labels that were taken for missing values."""
        taken = _taken(values, text)
        if taken:
            said = f"{taken}, which counts as missing unless `classes` names it"
            self.readings.notes.append(
                Note(place=f"task '{name}'", text=said, key="data.missing_values")
            )

    def _refuse_missing(
        self, name: str, task: TaskColumn, column: str, values: pa.ChunkedArray, text: pa.Array
    ) -> None:
        """Raises UserError where one class is left because the others count as missing."""
        if (
            task.task_kind is None
            and len(pc.unique(text.drop_null())) == 1
            and _taken(values, text)
        ):
            raise UserError(
                f"data.tasks.{name}: {self.locate_row(0).rpartition(': ')[0]}: column '{column}': "
                f"expected labels of two classes at least, got {shown(text.drop_null()[0])} alone: "
                f"{_taken(values, text)}, which counts as missing. Name it in "
                f"data.tasks.{name}.classes if it is a class."
            )


def _taken(values: pa.ChunkedArray, text: pa.Array) -> str:
    """How many labels count as missing for their words; nothing where there are none."""
    trimmed = pc.utf8_trim_whitespace(plain(values))
    taken = pc.and_(pc.is_null(text), pc.not_equal(trimmed, ""))
    words = pc.value_counts(trimmed.filter(pc.fill_null(taken, False))).to_pylist()
    which = ", ".join(shown(entry["values"]) for entry in words[:3])
    if words:
        return f"{sum(entry['counts'] for entry in words)} of {len(trimmed)} labels are {which}"
    return ""


def form_of_new_labels(source: FilesConfig, dataset: TableDataset, name: str) -> TextForm | None:
    """The form of a column of numbers that is no input of a run: as its task has it, or found; None
    for a plain one.
    """
    known = source.found.tasks.get(name)
    if known is not None and name in known.forms:
        return known.forms[name]
    columns = [dataset.parts[part].table.raw(block)[name] for part, block in dataset.blocks]
    if not all(is_text(column.type) for column in columns):
        return None
    missing = missing_words(source.missing_values)
    text = pa.concat_arrays([blanked(column, missing) for column in columns])
    keys = Keys(source.decimal, source.thousands, source.dates)
    finding = find_forms({name: text}, keys, commas_divide=dataset.commas_divide)[name]
    if finding.form in (TEXT, *PLAIN):
        return None
    return finding.form


def _of_classes(form: TextForm, text: pa.Array, classes: Sequence[str]) -> TextForm:
    """Plain numbers where the classes are written as numbers are read; else texts."""
    if form not in PLAIN:
        return TEXT
    known = pc.unique(text.drop_null())
    if set(known.to_pylist()) <= set(classes):
        return TEXT
    return form


def doubt(column: pa.Array, finding: Finding) -> str:
    """Between which values of its first cell a column leaves a doubt."""
    cell = column.slice(finding.first, 1)
    values = [_as_written(read_as(cell, form).values[0]) for form in finding.others]
    if len(set(values)) < 2:  # the first cell is none of those that differ
        cells = pc.unique(column.drop_null())
        read = [read_as(cells, form).values for form in finding.others[:2]]
        place = int(np.argmax(pc.not_equal(*read).to_numpy(zero_copy_only=False)))
        cell, values = cells.slice(place, 1), [_as_written(part[place]) for part in read]
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


def _in_words(form: TextForm) -> str:
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


def _as_written(value: pa.Scalar) -> str:
    read = value.as_py()
    if isinstance(read, float):
        return f"{read:.15g}"
    return str(read)
