"""Which columns of the user's tables are inputs, in which role, and why others are none."""

import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from raymtl.data.tables.column_names import label_columns
from raymtl.data.tables.column_roles import role_of
from raymtl.data.tables.columns import LocateRow, numbers, texts
from raymtl.data.tables.dataset import TableDataset, TableRows
from raymtl.data.tables.findings import (
    NAMED,
    codes_of,
    columns_named,
    constant_note,
    is_constant,
    is_index,
)
from raymtl.data.tables.fitted_column import Role
from raymtl.data.tables.folders import FILE, FOLDER
from raymtl.data.tables.readings import given_role
from raymtl.data.tables.settings import FilesConfig
from raymtl.data.tables.splits import UNKNOWN, splits_named
from raymtl.data.tables.wide import changing, numbers_without_doubt
from raymtl.storage.notes import Note
from raymtl.types import UserError

EXCLUDED, OTHERWISE, SPLITS_ROWS = "excluded", "group, key or split", "names the splits"
BESIDE = "beside the pictures"
CONSTANT = "always the same in the rows for training"
EXPLAINED = (EXCLUDED, OTHERWISE, SPLITS_ROWS, CONSTANT)
"""Reasons that the user gave, or that have a note of their own."""
ODD = "texts beside numbers"
OF_PICTURES = re.compile(rf"{FILE}|{FOLDER}\d*")


class ChosenInputs(NamedTuple):
    """The columns that are inputs, with their roles; why others are none; and the notes on both."""

    roles: dict[str, Role]
    left_out: dict[str, str]
    notes: list[Note]
    named: Mapping[str, bool]
    """Whether columns were named in the configuration."""


def choose_inputs(
    source: FilesConfig,
    dataset: TableDataset,
    rows: TableRows,
    locate_row: LocateRow,
    oddities: Mapping[str, str],
) -> ChosenInputs:
    """`oddities` say why columns that are nearly all numbers are none.

    Raises UserError where no column can be learned from, or one that was named.
    """
    candidates = dataset.candidates()
    chosen = ChosenInputs({}, {}, [], candidates)
    sure = numbers_without_doubt(rows.table, candidates)
    columns = dict(zip(rows.table.column_names, rows.table.columns, strict=True))
    for name, named in candidates.items():
        role, why = given_role(source, dataset, name), ""
        if role is None and not named and is_index(name, columns[name]):
            why = "an index that a data frame left"
        elif role is None and name in sure:
            role = "number"
        elif role is None:
            role, why = role_of(columns[name], source.max_categories)
            if name in oddities:
                chosen.notes.append(_oddity_note(name, role, oddities[name]))
                why = f"{ODD}: {oddities[name]}"
        if role is not None:
            chosen.roles[name] = role
        elif named:
            raise UserError(
                f"data.inputs: {locate_row(0).rpartition(': ')[0]}: column '{name}': expected "
                f"values to learn from, got {why}. Leave it away, or give it a role."
            )
        else:
            chosen.left_out[name] = why
    _leave_pictures_alone(chosen)
    _refuse_labels(source, chosen)
    _explain_others(source, dataset, chosen)
    _leave_split_column(chosen, split_column_of(source, dataset, rows))
    return chosen


def _leave_split_column(chosen: ChosenInputs, column: str | None) -> None:
    """Leaves out the column that names the splits, unless it was named as an input."""
    if column in chosen.roles and not chosen.named[column]:
        del chosen.roles[column]
        chosen.left_out[column] = SPLITS_ROWS


def _oddity_note(name: str, role: Role | None, oddity: str) -> Note:
    """On a column that is no number because of some cells."""
    became = {
        None: "it is left out",
        "category": "it is one-hot",
        "text": "it is weighed by TF-IDF",
    }
    text = f"{oddity}, so {became.get(role, 'it is text')}"
    return Note(place=columns_named([name]), text=text, key="data.missing_values")


def _none_of(left_out: Mapping[str, str]) -> UserError:
    """What is said where no column is left."""
    listed = (
        "; ".join(f"'{name}' ({why})" for name, why in list(left_out.items())[:NAMED])
        or "none but labels"
    )
    hint = ""
    if any(why.startswith(ODD) for why in left_out.values()):
        hint = (
            " Add the cell to data.missing_values if it stands for nothing, or give the column a "
            "role."
        )
    return UserError(f"data.inputs: expected a column to learn from, got none: {listed}.{hint}")


def _leave_pictures_alone(chosen: ChosenInputs) -> None:
    """Leaves out the columns beside those of pictures. Raises UserError where they were named, or
    where no column is left.
    """
    pictures = [name for name, role in chosen.roles.items() if role == "picture"]
    for name in [name for name in chosen.roles if pictures and name != pictures[0]]:
        if chosen.named[name]:
            raise UserError(
                "data.inputs: expected one column of pictures, or columns of values, got "
                f"'{pictures[0]}' and '{name}'. Name one of them."
            )
        chosen.left_out[name] = f"{BESIDE} of '{pictures[0]}'"
        del chosen.roles[name]
    if not chosen.roles:
        raise _none_of(chosen.left_out)


def _refuse_labels(source: FilesConfig, chosen: ChosenInputs) -> None:
    for name, task in source.tasks.items():
        both = sorted(set(label_columns(name, task)) & set(chosen.roles))
        if both:
            raise UserError(
                f"data.inputs: expected no label among them, got '{both[0]}' of task '{name}'. "
                "Remove it."
            )


def _explain_others(source: FilesConfig, dataset: TableDataset, chosen: ChosenInputs) -> None:
    """Why columns that were no candidates are no inputs."""
    if source.inputs != "auto":
        return
    labels = {column for name, task in source.tasks.items() for column in label_columns(name, task)}
    for name in dataset.names:
        if name in chosen.roles or name in chosen.left_out or name in chosen.named:
            continue
        if name in (source.group, source.key, source.split.column, source.split.key):
            chosen.left_out[name] = OTHERWISE
        elif name not in labels:
            if dataset.format != "pictures":
                chosen.left_out[name] = EXCLUDED
            else:
                chosen.left_out[name] = BESIDE


def split_column_of(source: FilesConfig, dataset: TableDataset, rows: TableRows) -> str | None:
    """The column that names the splits: the given one, or `split` where all of its values are names
    of splits, and of more than one split unless further rows may name others.
    """
    if source.split.column:
        return source.split.column
    if "split" in dataset.names and not any(
        "split" in label_columns(n, t) for n, t in source.tasks.items()
    ):
        splits = splits_named(texts(rows.table["split"]))
        is_sample = len(rows.table) < dataset.num_rows
        if (splits != UNKNOWN).all() and (is_sample or len(np.unique(splits)) > 1):
            return "split"
    return None


def without_constants(
    chosen: ChosenInputs, rows: TableRows, train: np.ndarray, locate_row: LocateRow
) -> ChosenInputs:
    """Leaves out numbers that are always the same in the rows for training [N], unless they were
    named.

    Raises UserError where no input remains.
    """
    roles, left_out, notes = dict(chosen.roles), dict(chosen.left_out), list(chosen.notes)
    sure = changing(rows.table, chosen.roles, train)
    for name, role in chosen.roles.items():
        if role not in ("number", "category") or train.all() or name in sure:
            continue
        if role == "number":
            values = numbers(rows.table[name], name, locate_row)
        else:
            values = codes_of(rows.table[name])
        if not is_constant(values, train):
            continue
        stays = (
            chosen.named[name] or role == "category"
        )  # a category that is unknown is a value of its own
        notes.append(constant_note(name, rows.table[name], values, train, stays=stays))
        if not stays:
            left_out[name] = CONSTANT
            del roles[name]
    if not roles:
        raise _none_of(left_out)
    return ChosenInputs(roles, left_out, notes, chosen.named)


def left_out_notes(left_out: Mapping[str, str]) -> list[Note]:
    """On the columns that are no inputs, one note for each reason that the user did not give."""
    by_reason: dict[str, list[str]] = {}
    for name, why in left_out.items():
        if (
            why in EXPLAINED
            or why.startswith(ODD)
            or (why.startswith(BESIDE) and OF_PICTURES.fullmatch(name))
        ):
            continue
        if why.startswith("always "):
            why = "always the same"
        by_reason.setdefault(why, []).append(name)
    return [
        Note(place=columns_named(names), text=f"left out: {why}", key="data.inputs")
        for why, names in by_reason.items()
    ]
