"""The predictions for one task, before and after adaptation, beside its labels."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from raymtl.types import Task


class Prediction(NamedTuple):
    """The predictions for one task and its labels, by rows [N, ...]."""

    task: Task
    classes: tuple[str, ...]
    """The names of the classes or labels, in the order of their numbers; the numbers themselves if
    they have no names.
    """
    has_names: bool
    values: tuple[int, ...]
    """The numbers of the classes in the user's maps; empty if they are 0, 1, 2 ...
    
    """
    target: Tensor | None
    is_labelled: np.ndarray
    """[N] bool: which rows have a label."""
    before: Tensor | None
    after: Tensor

    def at(self, rows: slice) -> "Prediction":
        """The predictions for a subset of the rows."""
        target, before = self.target, self.before
        if target is not None:
            target = target[rows]
        if before is not None:
            before = before[rows]
        return self._replace(
            is_labelled=self.is_labelled[rows], target=target, before=before, after=self.after[rows]
        )

    def with_classes(self, names: Sequence[str]) -> "Prediction":
        """A copy with these class names, if there are any."""
        if not names:
            return self
        return self._replace(classes=tuple(names), has_names=True)
