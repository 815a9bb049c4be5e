"""What is counted and summed up in the rows of a block for all that encoding has to know.

The statistics of blocks add up to those of all their rows, to the bit, in whatever order they are
added: they are whole numbers and exact sums.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raymtl.data.tables.columns import LocateRow, numbers, texts, vectors
from raymtl.data.tables.exact_moments import Moments, moments_of
from raymtl.data.tables.fitted_column import FittedColumn
from raymtl.data.tables.label_encoding import flags_of, label_sets, label_vectors
from raymtl.data.tables.label_kinds import Columns
from raymtl.data.tables.schema import FittedTask
from raymtl.data.tables.text_columns import encoded_texts
from raymtl.data.tables.text_terms import TermSums, sum_terms
from raymtl.data.tables.wide import column_moments

Counts = Mapping[str, int]


def _added(one: Counts, other: Counts) -> Counts:
    counts = dict(one)
    for name, count in other.items():
        counts[name] = counts.get(name, 0) + count
    return counts


@dataclass(frozen=True)
class LabelSums:
    """Of the labels of a task in rows for training."""

    labelled: int = 0
    """How many of them have a label."""
    moments: tuple[Moments, ...] = ()
    """Of each component of a number."""
    yes: Counts = field(default_factory=dict)
    """How many have each class or label; 0 for one that only other rows have."""
    no: Counts = field(default_factory=dict)
    """How many do not have each label."""

    def __add__(self, other: Self) -> "LabelSums":
        moments = [one + more for one, more in zip(self.moments, other.moments, strict=True)]
        return LabelSums(
            self.labelled + other.labelled,
            tuple(moments),
            _added(self.yes, other.yes),
            _added(self.no, other.no),
        )


@dataclass(frozen=True)
class InputSums:
    """Of the columns of inputs in rows for training."""

    numbers: Mapping[str, Moments]
    """Of columns of numbers, and of vectors for all of their numbers together."""
    categories: Mapping[str, Counts]
    texts: Mapping[str, TermSums]

    def __add__(self, other: Self) -> "InputSums":
        return InputSums(
            {name: one + other.numbers[name] for name, one in self.numbers.items()},
            {name: _added(one, other.categories[name]) for name, one in self.categories.items()},
            {name: one + other.texts[name] for name, one in self.texts.items()},
        )


@dataclass(frozen=True)
class Statistics:
    """Of the rows for training in some blocks."""

    rows: int
    inputs: InputSums
    labels: Mapping[str, LabelSums]

    def __add__(self, other: Self) -> "Statistics":
        labels = {name: one + other.labels[name] for name, one in self.labels.items()}
        return Statistics(self.rows + other.rows, self.inputs + other.inputs, labels)


class TrainRows(NamedTuple):
    """Rows of a table [N], and which of them are for training, [N] bool."""

    table: pa.Table
    train: np.ndarray
    locate_row: LocateRow

    def column(self, name: str) -> pa.ChunkedArray:
        """The values in the rows for training."""
        return self.table[name].filter(pa.array(self.train))

    def locate(self, row: int) -> str:
        """Where a row is from, by its number among those for training."""
        return self.locate_row(int(np.flatnonzero(self.train)[row]))


def sum_inputs(columns: Sequence[FittedColumn], rows: TrainRows) -> InputSums:
    """Looks at the rows for training. Raises UserError for values that are no numbers."""
    plain = [column.column for column in columns if column.role == "number"]
    moments = column_moments(rows.table, plain, rows.train)
    counts: dict[str, Counts] = {}
    terms: dict[str, TermSums] = {}
    for column in columns:
        name = column.column
        if column.role == "category":
            counts[name] = _counts(rows.column(name))
        elif column.encoder is not None and column.encoder.frozen:
            moments[name] = moments_of(encoded_texts(column, rows.column(name)))
        elif column.is_sparse:
            terms[name] = sum_terms(texts(rows.column(name)), column.num_places)
        elif column.role == "vector":
            moments[name] = moments_of(vectors(rows.column(name), name, rows.locate, column.size))
        elif column.role == "number" and name not in moments:
            moments[name] = moments_of(numbers(rows.column(name), name, rows.locate))
    return InputSums(moments, counts, terms)


def _counts(column: pa.ChunkedArray) -> Counts:
    entries = pc.value_counts(texts(column).drop_null())
    names, counts = entries.field("values").to_pylist(), entries.field("counts").to_pylist()
    return dict(zip(names, counts, strict=True))


def sum_labels(
    fitted: FittedTask, columns: Columns, train: np.ndarray, locate_row: LocateRow
) -> LabelSums:
    """Looks at labels of a known kind, in the rows for training [N]; the names of classes are of
    all rows. Raises UserError for labels of another form.
    """
    form = fitted.task_kind.label_form
    if form == "number":
        return _sum_numbers(fitted, columns, train, locate_row)
    if form == "class":
        (column,) = columns.values()
        return _sum_classes(column, train)
    if len(columns) > 1:
        return _sum_flags(columns, train, locate_row)
    return _sum_sets(next(iter(columns.values())), fitted.separator, train)


def _sum_numbers(
    fitted: FittedTask, columns: Columns, train: np.ndarray, locate_row: LocateRow
) -> LabelSums:
    size = len(fitted.means) or None
    values = label_vectors(columns, locate_row, size)[train]
    labelled = int((~np.isnan(values).all(1)).sum())
    return LabelSums(labelled, tuple(moments_of(component) for component in values.T))


def _sum_classes(column: pa.ChunkedArray, train: np.ndarray) -> LabelSums:
    encoded = pc.dictionary_encode(texts(column))
    codes = pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False)
    in_training = codes[train & (codes >= 0)]
    counts = np.bincount(in_training, minlength=len(encoded.dictionary)).tolist()
    yes = dict(zip(encoded.dictionary.to_pylist(), counts, strict=True))
    return LabelSums(len(in_training), yes=yes)


def _sum_flags(columns: Columns, train: np.ndarray, locate_row: LocateRow) -> LabelSums:
    flags = {label: flags_of(label, column, locate_row)[train] for label, column in columns.items()}
    is_labelled = np.zeros(int(train.sum()), bool)
    for values in flags.values():
        is_labelled |= ~np.isnan(values)
    yes = {label: int((values == 1).sum()) for label, values in flags.items()}
    no = {label: int((values == 0).sum()) for label, values in flags.items()}
    return LabelSums(int(is_labelled.sum()), yes=yes, no=no)


def _sum_sets(column: pa.ChunkedArray, separator: str | None, train: np.ndarray) -> LabelSums:
    yes: Counter[str] = Counter()
    labelled = 0
    for labels, is_for_training in zip(label_sets(column, separator), train.tolist(), strict=True):
        if labels is None:
            continue
        if is_for_training:
            labelled += 1
            yes.update(set(labels))
        else:
            yes.update(dict.fromkeys(labels, 0))
    return LabelSums(labelled, yes=dict(yes))
