"""How the labels of the user's files are written, which a key or their own kind may say."""

from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from raymtl.data.tables.cells import NOTHING, blanked
from raymtl.data.tables.columns import is_text
from raymtl.data.tables.finding import TEXT, Finding
from raymtl.data.tables.findings import shown
from raymtl.data.tables.form_words import doubt, key_of_doubt, taken_for_missing
from raymtl.data.tables.forms import find_forms
from raymtl.data.tables.label_kinds import FEW
from raymtl.data.tables.look import PLAIN, Look, plain_or_text
from raymtl.data.tables.schema import TaskColumn, TextForm
from raymtl.data.tables.task_labels import JoinedLabels
from raymtl.storage.notes import Note
from raymtl.types import UserError


class LabelLook(Look):
    """Looks at labels."""

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
            form = self.of_number(column, text, finding, f"data.tasks.{name}")
        elif task.classes:
            return _of_classes(finding.form, text, self.dataset.labels[name].classes)
        elif kind is not None:
            return plain_or_text(finding)
        else:
            form = self._inferred(name, column, text, finding)
        self.note_form(f"task '{name}'", text, form, True)
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
        taken = taken_for_missing(values, text)
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
            and taken_for_missing(values, text)
        ):
            raise UserError(
                f"data.tasks.{name}: {self.locate_row(0).rpartition(': ')[0]}: column '{column}': "
                f"expected labels of two classes at least, got {shown(text.drop_null()[0])} alone: "
                f"{taken_for_missing(values, text)}, which counts as missing. Name it in "
                f"data.tasks.{name}.classes if it is a class."
            )


def _of_classes(form: TextForm, text: pa.Array, classes: Sequence[str]) -> TextForm:
    """Plain numbers where the classes are written as numbers are read; else texts."""
    if form not in PLAIN:
        return TEXT
    known = pc.unique(text.drop_null())
    if set(known.to_pylist()) <= set(classes):
        return TEXT
    return form
