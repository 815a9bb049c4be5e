"""The columns that a configuration names, and the refusal of names that the files do not have."""

import difflib
from collections.abc import Collection, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

import pyarrow as pa

from raymtl.data.tables.blocks import Cells, Table
from raymtl.data.tables.paths import FileSet
from raymtl.data.tables.schema import TaskColumn
from raymtl.data.tables.settings import FilesConfig
from raymtl.types import UserError


class TablePart(NamedTuple):
    """One of the tables that a dataset is made of."""

    file_set: FileSet
    table: Table
    split: int | None
    """The number of the split that all of its rows are in, if its path says one."""
    task: str | None
    """The only task that it has labels of, if there is one."""


class JoinedLabels(NamedTuple):
    """The labels of a task in a file of their own, which data.key joins with the rows."""

    rows: pa.Table
    file_set: FileSet
    cells: Cells
    """How the cells of its columns are written."""


def label_columns(name: str, task: TaskColumn) -> tuple[str, ...]:
    """The columns that hold the labels of the task of this name. (Those of boxes are of a table of
    their own.)
    """
    kind = task.task_kind
    if kind is not None and kind.has_boxes:
        return (name,)
    return task.columns or (task.column or name,)


def all_label_columns(source: FilesConfig) -> set[str]:
    """The columns that hold the labels of any task."""
    return {column for name, task in source.tasks.items() for column in label_columns(name, task)}


def check_parts(source: FilesConfig, parts: Sequence[TablePart]) -> None:
    """Raises UserError where the parts differ in other columns than those of labels."""
    first, *others = parts
    labels = all_label_columns(source)
    for other in others:
        odd = sorted((set(first.table.names) ^ set(other.table.names)) - labels)
        if not odd:
            continue
        if odd[0] in other.table.names:
            has = "has"
        else:
            has = "lacks"
        raise UserError(
            f"{other.file_set.shown}: expected the columns of {first.file_set.shown}, got "
            f"others: it {has} '{odd[0]}'. All parts must have the same columns."
        )


class NameCheck(NamedTuple):
    """The columns of a dataset, which the names in its configuration are compared with."""

    source: FilesConfig
    parts: Sequence[TablePart]
    joined: Mapping[str, JoinedLabels]
    names: Sequence[str]
    """The columns that all parts have."""

    @property
    def shown(self) -> str:
        """The path of the first part, as the user wrote it."""
        return self.parts[0].file_set.shown

    def of_rows(self) -> None:
        """Raises UserError for a group, split or key that is no column."""
        split = self.source.split
        for key, name in (
            ("group", self.source.group),
            ("split.column", split.column),
            ("split.key", split.key),
        ):
            if name is not None:
                check_name(f"data.{key}", name, self.names, self.shown)

    def of_joined_labels(self) -> None:
        """Raises UserError where the files of tasks lack the key or a column of labels."""
        key = str(self.source.key)
        for task, labels in self.joined.items():
            columns = labels.rows.column_names
            for name in (key, *label_columns(task, self.source.tasks[task])):
                check_name(f"data.tasks.{task}", name, columns, labels.file_set.shown)
            check_name("data.key", key, self.names, self.shown)

    def of_labels(self, tasks_in_columns: Collection[str]) -> None:
        """Raises UserError where the parts lack a column with labels of these tasks."""
        for task in tasks_in_columns:
            if task in self.joined:
                continue
            for column in label_columns(task, self.source.tasks[task]):
                for part in self._holders(task):
                    check_name(f"data.tasks.{task}", column, part.table.names, part.file_set.shown)

    def _holders(self, task: str) -> Iterator[TablePart]:
        """The parts that hold the labels of a task."""
        of_task = [part for part in self.parts if part.task == task]
        if of_task:
            yield from of_task
        else:
            yield from (part for part in self.parts if part.task is None)

    def of_inputs(self) -> None:
        """Raises UserError for an input that is neither a column nor a pattern of some."""
        if isinstance(self.source.inputs, str):
            return
        known = set(self.names)
        for name in self.source.inputs:
            if name in known or any(fnmatchcase(other, name) for other in self.names):
                continue
            check_name("data.inputs", name, self.names, self.shown)


def check_name(key: str, name: str, names: Collection[str], shown: str) -> None:
    """Raises UserError where the column that the key names is none of these in the file."""
    if name in names:
        return
    names = list(names)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    listed = ", ".join(f"'{known}'" for known in names[:12])
    if len(names) > 12:
        listed += " ..."
    hint = ""
    if close:
        hint = f" Did you mean '{close[0]}'?"
    elif name.isdigit():
        hint = " YAML reads 010 and 1_000 as other numbers: put such a name in quotes."
    raise UserError(f"{key}: {shown}: expected the column '{name}', got {listed}.{hint}")
