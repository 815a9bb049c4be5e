"""Rows of a user's examples as tensors, and the check that no input stands in two sets."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from raymtl.data.overlap import find_repeated
from raymtl.data.tables.row_origins import RowOrigins
from raymtl.storage.notes import Note
from raymtl.types import Batch, UserError


class LabelledRows(NamedTuple):
    """Rows with labels of the run's tasks."""

    inputs: Tensor
    targets: Mapping[str, Tensor]
    masks: Mapping[str, Tensor]
    """Of every task: which rows have a label of it."""
    class_names: Mapping[str, tuple[str, ...]]
    """Of the tasks whose classes the examples name."""
    origins: RowOrigins
    notes: Sequence[Note] = ()

    def at(self, rows: Tensor) -> Batch:
        """Some rows, [N] bool."""
        return Batch(
            self.inputs[rows],
            {name: target[rows] for name, target in self.targets.items()},
            {name: mask[rows] for name, mask in self.masks.items()},
        )

    @property
    def is_labelled(self) -> Tensor:
        """Which rows have a label of any task, [N]."""
        return torch.stack([*self.masks.values()]).any(0)


class NewLabels(NamedTuple):
    """Rows with labels of a new task."""

    column: str
    inputs: Tensor
    targets: Tensor
    """[N] float64, nan where there is none."""
    class_names: tuple[str, ...]
    """By their numbers; none where labels are numbers."""
    origins: RowOrigins
    notes: Sequence[Note] = ()


def check_not_repeated(path: Path, inputs: Tensor, is_labelled: Tensor) -> None:
    """Raises UserError where an input to predict is also one with a label."""
    rows = find_repeated(inputs, is_labelled)
    if rows:
        raise UserError(
            f"{path}: row {rows[0]}: expected an input to predict that is not among those with a "
            f"label, got that of row {rows[1]}. Leave one of the two rows away."
        )


def scaled(inputs: Tensor) -> Tensor:
    """In the default precision; pictures from 0 to 1."""
    numbers = inputs.to(torch.get_default_dtype())
    if inputs.dtype == torch.uint8:
        return numbers / 255
    return numbers
