"""Notes on tables: what was found in the rows that their owner will want to know before anything is
trained.
"""

import re
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raymtl.data.base import SPLITS
from raymtl.data.tables.columns import LocateRow, is_number, plain, texts
from raymtl.data.tables.exact_moments import moments_of
from raymtl.data.tables.schema import FittedTask
from raymtl.data.tables.splits import hashes
from raymtl.storage.notes import Note

NAMED = 5
"""Classes or columns that a note names."""
ROWS = 3
"""Rows that a note names."""
INDEX = re.compile(
    r"(unnamed: ?\d+|__index_level_\d+__|level_0|index|rownames?|row\.names)?", re.IGNORECASE
)
"""Names of columns that hold the index of a data frame."""


def shown(value: object) -> str:
    """A cell or a name in quotes, on one line and not too long."""
    text = " ".join(str(value).split())
    if len(text) > 40:
        return f"'{text[:40]}...'"
    return f"'{text}'"


def listed(values: Sequence[object]) -> str:
    """The first of some names, and how many more there are."""
    if len(values) > NAMED:
        more = f" and {len(values) - NAMED} more"
    else:
        more = ""
    return ", ".join(shown(value) for value in values[:NAMED]) + more


def columns_named(names: Sequence[str]) -> str:
    """The place of a note on these columns."""
    return f"column{'s' * (len(names) > 1)} {listed(names)}"


def is_index(name: str, column: pa.ChunkedArray) -> bool:
    """Whether a column is the index that a data frame left: by its name, and where many have it by
    its numbers.
    """
    if INDEX.fullmatch(name.strip()) is None:
        return False
    if name.strip() == "" or name.lower().startswith(("unnamed", "__index")):
        return True
    values = plain(column)
    return bool(pa.types.is_integer(values.type)) and bool(
        (np.diff(values.to_numpy(zero_copy_only=False)) > 0).all()
    )


def codes_of(column: pa.ChunkedArray) -> np.ndarray:
    """Texts as numbers that tell them apart, [N], nan where there is none."""
    codes = pc.dictionary_encode(texts(column)).indices
    numbers: np.ndarray = pc.cast(codes, pa.float64()).to_numpy(zero_copy_only=False)
    return numbers


def is_constant(values: np.ndarray, train: np.ndarray) -> bool:
    """Whether numbers [N] are always the same in the rows for training [N], and others
    elsewhere.
    """
    in_training, other = values[train & ~np.isnan(values)], values[~train & ~np.isnan(values)]
    return bool(
        len(in_training)
        and len(other)
        and (in_training == in_training[0]).all()
        and (other != in_training[0]).any()
    )


def constant_note(
    name: str, column: pa.ChunkedArray, values: np.ndarray, train: np.ndarray, *, stays: bool
) -> Note:
    """On a column whose `values` [N] are constant in the rows for training."""
    written = texts(column)
    value, least, most = (
        written[int(row)]
        for row in (
            (train & ~np.isnan(values)).argmax(),
            np.nanargmin(values),
            np.nanargmax(values),
        )
    )
    if str(most) == str(value):
        other = least
    else:
        other = most
    if is_number(plain(column).type):
        others = f"{least} to {most} in all"
    else:
        others = f"{other} elsewhere"
    text = f"always {value} in the rows for training, and {others}"
    if stays:
        end = "; a model cannot learn what it means"
    else:
        end = ", so it is left out"
    return Note(place=columns_named([name]), text=text + end, key="data.inputs")


def label_notes(
    name: str, fitted: FittedTask, target: np.ndarray, mask: np.ndarray, splits: np.ndarray
) -> list[Note]:
    """On the labels [N, ...] of a task: classes that training never has, and targets that never
    change.
    """
    form = fitted.task_kind.label_form
    if form == "number":
        return _constant_targets(name, fitted, target, mask & (splits == 0))
    if form not in ("class", "set"):
        return []
    notes = []
    counts = np.stack(
        [_counts(fitted, target[mask & (splits == split)]) for split in range(len(SPLITS))]
    )
    missing = [place for place in range(len(fitted.classes)) if counts[0, place] == 0]
    for split in (1, 2):
        odd = [place for place in missing if counts[split, place]]
        if odd:
            notes.append(
                _of_unseen_classes(name, fitted, odd, SPLITS[split], int(counts[split, odd].sum()))
            )
    unused = [fitted.classes[place] for place in missing if not counts[:, place].any()]
    if unused:
        text = f"no row has the class{'es' * (len(unused) > 1)} {listed(unused)}"
        notes.append(Note(place=f"task '{name}'", text=text, key=f"data.tasks.{name}.classes"))
    if form == "class" and (counts[0] > 0).sum() == 1:
        only = fitted.classes[int(counts[0].argmax())]
        text = f"every row for training has the class {shown(only)}, so there is nothing to learn"
        notes.append(Note(place=f"task '{name}'", text=text, key="data.split"))
    return notes


def _counts(fitted: FittedTask, target: np.ndarray) -> np.ndarray:
    """How many of these rows are of each class, or have each label."""
    if target.ndim == 2:
        counts: np.ndarray = np.nansum(target, 0).astype(np.int64)
        return counts
    return np.bincount(target.astype(np.int64), minlength=len(fitted.classes))


def _of_unseen_classes(
    name: str, fitted: FittedTask, odd: Sequence[int], split: str, rows: int
) -> Note:
    classes = [fitted.classes[place] for place in odd]
    subject = f"the class {listed(classes)} is"
    if len(classes) > 1:
        subject = f"the classes {listed(classes)} are"
    text = f"{subject} in {split} ({rows} rows) and in no row for training"
    plain_names = {
        _letters(known): known for place, known in enumerate(fitted.classes) if place not in odd
    }
    twin = next((known for label in classes if (known := plain_names.get(_letters(label)))), None)
    if twin is not None:
        text += f"; perhaps {shown(twin)} is meant, written in another way"
    return Note(place=f"task '{name}'", text=text, key="data.split")


def _letters(label: str) -> str:
    """Without case, spaces and marks, but for signs of comparison."""
    return re.sub(r"[^\w<>=+-]", "", label).casefold()


def _constant_targets(
    name: str, fitted: FittedTask, target: np.ndarray, train: np.ndarray
) -> list[Note]:
    values = target[train].reshape(int(train.sum()), -1)
    constant = [place for place, component in enumerate(values.T) if moments_of(component).std == 0]
    if not constant:
        return []
    if values.shape[1] == 1:
        which = ""
    else:
        which = f"number {constant[0]} of the target is "
    text = (
        f"{which}always {fitted.means[constant[0]]:.6g} in the rows for training, so there is "
        "nothing to learn"
    )
    return [Note(place=f"task '{name}'", text=text, key=f"data.tasks.{name}")]


def copy_notes(
    columns: Mapping[str, pa.ChunkedArray], splits: np.ndarray, locate_row: LocateRow
) -> list[Note]:
    """On rows of val that are in training too, and of test that are in either, in all of these
    columns [N].

    Where rows of training are like one another as well, as those of a few categories are, such rows
    say nothing.
    """
    if not columns or not (splits == 0).any() or (splits == 0).all():
        return []
    hashed = hashes(list(columns.items()), 0)
    _, counts = np.unique(hashed[splits == 0], return_counts=True)
    alike = float(counts[counts > 1].sum() / counts.sum())
    notes = []
    for split, others in ((1, "train"), (2, "train or val")):
        rows = np.flatnonzero(splits == split)
        copies = rows[np.isin(hashed[rows], hashed[splits < split])]
        if len(copies) == 0 or len(copies) <= 2 * alike * len(rows):
            continue
        first = rows_named(copies, locate_row)
        text = (
            f"{len(copies)} of {len(rows)} rows are in {others} too, with inputs and labels: "
            f"{first}"
        )
        notes.append(Note(place=SPLITS[split], text=text, key="data.split"))
    return notes


def rows_named(rows: Sequence[int] | np.ndarray, locate_row: LocateRow) -> str:
    """The first of these rows, each file once."""
    parts: list[str] = []
    before = ""
    for row in rows[:ROWS]:
        file, _, place = locate_row(int(row)).rpartition(": ")
        if file == before:
            parts.append(place)
        else:
            parts.append(f"{'/'.join(file.split('/')[-2:])}: {place}")
        before = file
    if len(rows) > ROWS:
        return ", ".join(parts) + " ..."
    return ", ".join(parts)


def small_class_note(name: str, split: str, small: Sequence[str], number: int, least: int) -> Note:
    """On classes, of this number in a split, that have too few rows for an episode."""
    text = (
        f"{len(small)} of {number} classes have fewer than {least} rows (shots + queries), so "
        f"episodes of {split} never have them: {listed(small)}"
    )
    return Note(place=f"task '{name}'", text=text, key="data.queries")


def small_group_note(
    column: str, split: str, small: Sequence[str], number: int, least: int
) -> Note:
    """The same on groups."""
    text = (
        f"{len(small)} of {number} groups have fewer than {least} rows, so {split} never has "
        f"them: {listed(small)}"
    )
    return Note(place=f"column '{column}'", text=text, key="data.group")
