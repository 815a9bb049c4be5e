"""The columns that a configuration names, and the refusal of names that the files do not have."""

import difflib
from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

from raymtl.data.tables.blocks import Table
from raymtl.data.tables.folders import FILE
from raymtl.data.tables.paths import FileSet
from raymtl.data.tables.schema import Format, TaskColumn
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


def names_of_all(parts: Sequence[TablePart]) -> list[str]:
    """The columns that all parts have, in the order of the first."""
    known = frozenset.intersection(*(frozenset(part.table.names) for part in parts))
    return [name for name in parts[0].table.names if name in known]


def check_row_columns(source: FilesConfig, names: Collection[str], shown: str) -> None:
    """Raises UserError for a group, split or key that is no column."""
    for key, name in (
        ("group", source.group),
        ("split.column", source.split.column),
        ("split.key", source.split.key),
    ):
        if name is not None:
            check_name(f"data.{key}", name, names, shown)


def check_inputs(source: FilesConfig, names: Collection[str], shown: str) -> None:
    """Raises UserError for an input that is neither a column nor a pattern of some."""
    if isinstance(source.inputs, str):
        return
    known = set(names)
    for name in source.inputs:
        if name in known or any(fnmatchcase(other, name) for other in names):
            continue
        check_name("data.inputs", name, names, shown)


def candidates(source: FilesConfig, names: Sequence[str], form: Format) -> dict[str, bool]:
    """The columns that could be inputs -> whether they were named, in the order of their names or
    of the table.
    """
    if not isinstance(source.inputs, str):
        known = set(names)
        chosen: list[str] = []
        for name in source.inputs:
            if name in known:
                chosen.append(name)
            else:
                chosen += [other for other in names if fnmatchcase(other, name)]
        return dict.fromkeys(chosen, True)
    if form == "pictures":
        return {FILE: True}
    taken: set[str | None] = {*all_label_columns(source), source.group, source.key}
    taken |= {source.split.column, source.split.key}
    left = []
    for name in names:
        excluded = any(fnmatchcase(name, pattern) for pattern in source.exclude)
        if name not in taken and not excluded:
            left.append(name)
    return dict.fromkeys(left, False)


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
