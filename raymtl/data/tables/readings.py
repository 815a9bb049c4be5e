"""How the columns of the user's files are written: found before their roles and tasks, and told
where it was found.
"""

from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase

import pyarrow as pa

from raymtl.data.tables.cells import blanked, missing_words
from raymtl.data.tables.columns import LocateRow, is_text
from raymtl.data.tables.dataset import TableDataset, TableRows
from raymtl.data.tables.finding import TEXT, Finding, Keys
from raymtl.data.tables.findings import columns_named, rows_named, shown
from raymtl.data.tables.fitted_column import Role
from raymtl.data.tables.form_words import doubt, key_of_doubt
from raymtl.data.tables.forms import find_forms
from raymtl.data.tables.label_readings import LabelLook
from raymtl.data.tables.look import PLAIN, Look, Readings, plain_or_text
from raymtl.data.tables.plain_cells import plain_cells
from raymtl.data.tables.schema import TextForm
from raymtl.data.tables.settings import FilesConfig
from raymtl.encoders.texts.settings import TextInput
from raymtl.storage.notes import Note


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
    look = _InputLook(source, dataset, keys, locate_row, findings, readings)
    label_look = LabelLook(*look)
    candidates = dataset.candidates()
    for name, finding in findings.items():
        role = given_role(source, dataset, name)
        if name in plain and role is None and name in dataset.written_columns:
            continue  # read so by everybody
        if name in candidates:
            form = look.of_input(name, columns[name], finding, role)
        else:
            form = plain_or_text(finding)
        if form not in PLAIN or name not in dataset.written_columns:
            readings.forms[name] = form
    look.note_forms(columns, [name for name in candidates if name in readings.forms])
    for name, task in source.tasks.items():
        if not dataset.labels[name].in_files:
            readings.label_forms[name] = label_look.of_labels(name, task, raw.labels[name])
    return readings


def given_role(source: FilesConfig, dataset: TableDataset, name: str) -> Role | None:
    """The role that the configuration gives a column."""
    given = given_input(source, dataset, name)
    if isinstance(given, TextInput):
        return given.role
    return given


def given_input(source: FilesConfig, dataset: TableDataset, name: str) -> Role | TextInput | None:
    """What the configuration says of a column, by its name or else by a pattern."""
    given = source.given_inputs
    if name in given:
        return given[name]
    return next(
        (
            of_pattern
            for pattern, of_pattern in given.items()
            if pattern not in dataset.names and fnmatchcase(name, pattern)
        ),
        None,
    )


class _InputLook(Look):
    """Looks at columns that could be inputs."""

    def of_input(
        self, name: str, column: pa.Array, finding: Finding, role: Role | None
    ) -> TextForm:
        """The form of an input, and the notes on it. Raises UserError for a doubt where the role is
        given.
        """
        if role == "number":
            return self.of_number(name, column, finding, "data.inputs")
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

    def note_forms(self, columns: Mapping[str, pa.Array], names: Sequence[str]) -> None:
        """Notes on forms that were found, one for all columns of a form."""
        by_form: dict[TextForm, list[str]] = {}
        for name in names:
            by_form.setdefault(self.readings.forms[name], []).append(name)
        for form, alike_columns in by_form.items():
            self.note_form(
                columns_named(alike_columns),
                columns[alike_columns[0]],
                form,
                alike_columns[0] in self.dataset.written_columns,
            )


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
